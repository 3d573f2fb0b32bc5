"""How soon a dead client's memory is free again.

A client that holds leases is killed with SIGKILL. The daemon's own journal says when the first of
its leases left LEASED (noticed), and when a keeper had freed the last (returned); it is exact to a
millisecond, and looking costs the daemon nothing.
"""

from __future__ import annotations

import datetime as dt
import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence

from tests.benchmarks.figure import Figure
from tests.nodes import MIB, Node, environment, read_line, wait_until

SUBJECT = "death"
KILLS = 8
HELD_TENSORS = 8
TENSOR_BYTES = 4 * MIB
NOTICED_MS = 100.0
RETURNED_MS = 1000.0
START_SECONDS = 60.0
TIME_FORMAT = "%Y-%m-%d %H:%M:%S,%f"

HOLDER = f"""
import signal, torch, aqua_client
held = [aqua_client.offload(torch.ones({TENSOR_BYTES}, dtype=torch.uint8)) for _ in range({HELD_TENSORS})]
assert all(handle.tier == "peer" for handle in held), [handle.reason for handle in held]
print("holding", flush=True)
signal.pause()
"""


def measure(node: Node) -> Iterator[Figure]:
    """Measure against a running node."""
    noticed, returned = zip(*(_kill(node) for _ in range(KILLS)), strict=True)
    yield _figure("SIGKILL to noticed", noticed, NOTICED_MS)
    held = HELD_TENSORS * TENSOR_BYTES // MIB
    yield _figure(f"SIGKILL to all returned, {held} MiB", returned, RETURNED_MS)


def _figure(name: str, milliseconds: Sequence[float], most: float) -> Figure:
    return Figure(
        subject=SUBJECT,
        name=f"{name}, the slowest of {len(milliseconds)}",
        value=max(milliseconds),
        unit="ms",
        rival=f"median {statistics.median(milliseconds):.0f} ms",
        at_most=most,
    )


def _kill(node: Node) -> tuple[float, float]:
    """Milliseconds from SIGKILL of a holder to the first word of it, and to the last."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        env=environment(AQUA_SOCKET=node.socket, AQUA_HOME_GPU="SHM-0", AQUA_CONNECT_SECONDS="10"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    try:
        assert read_line(holder.stdout, seconds=START_SECONDS) == "holding\n"
        killed = dt.datetime.now()  # noqa: DTZ005 - as the journal writes it
        holder.send_signal(signal.SIGKILL)
        wait_until(
            lambda: is_told(node.log(), killed),
            seconds=30,
            what="a killed client's slabs are free",
        )
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    told = list(moves(node.log(), killed))
    noticed = min(at for at, before, _ in told if before == "leased")
    returned = max(at for at, _, after in told if after is None)
    return _milliseconds(noticed - killed), _milliseconds(returned - killed)


def moves(log: str, since: dt.datetime) -> Iterator[tuple[dt.datetime, str | None, str | None]]:
    """When a lease went from which state to which since then; None is none."""
    since -= since.resolution * 1000  # the journal's times are whole milliseconds
    for line in log.splitlines()[: log.count("\n")]:  # the last one may be half written
        record = json.loads(line)
        if record.get("instruction") == "NoteMove":
            at = dt.datetime.strptime(record["time"], TIME_FORMAT)  # noqa: DTZ007 - local, as above
            if at >= since:
                yield at, record["before"], record["after"]


def is_told(log: str, killed: dt.datetime) -> bool:
    """Whether the journal, which is written a moment later, has each lease that left LEASED freed."""
    told = [(before, after) for _, before, after in moves(log, killed)]
    left = sum(before == "leased" for before, _ in told)
    return 0 < left == sum(after is None for _, after in told)


def _milliseconds(span: dt.timedelta) -> float:
    return span / dt.timedelta(milliseconds=1)
