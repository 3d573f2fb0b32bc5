"""How soon 200 sessions hear that their leases are asked back.

Each holds a slab of one GPU, whose owner reclaims all of them in one call. From that call to the
push in the hands of each session's listener; all of them acknowledge meanwhile, as they would.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.benchmarks.crowd import crowd
from tests.benchmarks.figure import Figure, percentile
from tests.nodes import MIB, PROGRAM, Node, environment, read_line, running_node, wait_until

SUBJECT = "revokes"
SESSIONS, PROCESSES = 200, 8
GPU_BYTES = 1024 * MIB
SLAB_BYTES = 4 * MIB  # the smallest
P99_MS = 50.0
OWNER_SECONDS = 60.0

OWNER = """
import json, sys, time
from aqua_client.producing import producer
from aqua_client.settings import ClientSettings

settings = ClientSettings(socket_path=sys.argv[1], connect_seconds=10.0, call_seconds=10.0)
with producer("SHM-1", settings=settings) as mine:
    sys.stdin.readline()
    mine.lend(2**30)
    print(json.dumps([]), flush=True)
    sys.stdin.readline()
    start = time.monotonic()
    result = mine.reclaim(2**30, deadline=10.0)
    print(json.dumps([start, time.monotonic(), result.freed_bytes]), flush=True)
"""


def measure() -> Iterator[Figure]:
    """Measure on a node of its own: one GPU to borrow for, one that lends."""
    with running_node(gpus=2, gpu_bytes=GPU_BYTES) as node, _owner(node) as owner:
        _hear(owner)
        lendable = 'aqua_lendable_bytes{gpu="SHM-1"}'
        slabs = SESSIONS * SLAB_BYTES
        wait_until(lambda: node.scrape()[lendable] >= slabs, seconds=60, what="SHM-1 lends")
        with crowd(node, sessions=SESSIONS, processes=PROCESSES, home_gpu="SHM-0") as sessions:
            sessions.ask("borrow 1")
            asked_at, freed_at, freed_bytes = _hear(owner)
            arrivals = [at for part in sessions.ask("arrivals") for at in part["at"]]
    assert freed_bytes >= slabs, f"{freed_bytes} of {slabs} bytes came back"
    assert len(arrivals) >= SESSIONS, "not every session was told"
    waits = [(at - asked_at) * 1e3 for at in arrivals]
    yield Figure(
        subject=SUBJECT,
        name=f"{SESSIONS} sessions are told, p99",
        value=percentile(waits, 99),
        unit="ms",
        rival=f"p50 {percentile(waits, 50):.1f} ms; {slabs // MIB} MiB freed after "
        f"{(freed_at - asked_at) * 1e3:.0f} ms",
        at_most=P99_MS,
    )


@contextmanager
def _owner(node: Node) -> Iterator[subprocess.Popen[str]]:
    """A process that uses SHM-1, says that it lends it, and reclaims it at the next line."""
    load = [*PROGRAM, "load", "--gpu", "SHM-1", "--bytes", "2MiB"]
    with subprocess.Popen(
        [
            *load,
            "--keeper-socket",
            node.keeper_socket,
            "--",
            sys.executable,
            "-c",
            OWNER,
            node.socket,
        ],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        try:
            assert "loaded" in read_line(owner.stdout, seconds=OWNER_SECONDS)
            yield owner
        finally:
            owner.kill()


def _hear(owner: subprocess.Popen[str]) -> list[float]:
    """Have it go on, and hear when that is done."""
    assert owner.stdin is not None
    assert owner.stdout is not None
    owner.stdin.write("go on\n")
    owner.stdin.flush()
    line = read_line(owner.stdout, seconds=OWNER_SECONDS)
    assert line, "the owner has ended, or hangs"
    found: list[float] = json.loads(line)
    return found
