"""Free memory does not change while an engine profiles it: vLLM's check, played on a real node.

vLLM notes what is free, runs the model, and asserts that no more is free afterwards; what others
freed meanwhile it would take for a leak, and what they took for its own use.
"""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress

from tests.end_to_end.bare_client import BareClient, Refused
from tests.nodes import MIB, Node, environment, read_line, running_node, wait_until

GPU = "SHM-0"
GPU_BYTES = 64 * MIB
SECONDS = 20.0
NEWCOMER_SECONDS = 10.0
TERM_SECONDS = 60  # a bare client sends no keepalives


class Engine:
    """The engine's process, which may have been started by another one."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self.hear() == {"event": "up"}

    def measure(self) -> None:
        self._go_on()
        assert self.hear() == {"event": "measuring"}

    def will_say_more(self, *, seconds: float) -> bool:
        """Whether there is a line to hear, now or within so many seconds."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], seconds)[0])

    def measured(self) -> dict[str, object]:
        self._go_on()
        return self.hear()

    def hear(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = read_line(self._process.stdout, seconds=SECONDS)
        assert line, f"the engine has ended: {self._process.poll()}"
        found: dict[str, object] = json.loads(line)
        return found

    def end(self) -> int:
        self._go_on()
        return self._process.wait(SECONDS)

    def _go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go on\n")
        self._process.stdin.flush()


def default_node() -> AbstractContextManager[Node]:
    """One that makes way for newcomers, as every node does unless it is told otherwise."""
    return running_node(
        gpus=1, gpu_bytes=GPU_BYTES, newcomer_seconds=NEWCOMER_SECONDS, term_seconds=TERM_SECONDS
    )


def aquactl(node: Node, command: str) -> list[str]:
    return [sys.executable, "-m", "aqua_daemon.ctl", command, "--socket", node.socket]


@contextmanager
def left_alone(node: Node) -> Iterator[None]:
    """For the length of the block."""
    words = [*aquactl(node, "quiesce"), GPU]
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, text=True) as quiesce:
        try:
            assert quiesce.stdout is not None
            assert "is left alone" in read_line(quiesce.stdout, seconds=SECONDS)
            yield
        finally:
            quiesce.send_signal(signal.SIGINT)


@contextmanager
def engine(node: Node, *prefix: str, steps: int = 4) -> Iterator[Engine]:
    """One that is up: its context is on the GPU."""
    program = [sys.executable, "-m", "tests.end_to_end.profiling"]
    program += [node.keeper_socket, GPU, str(steps)]
    process = subprocess.Popen(
        [*prefix, *program],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Engine(process)
    finally:
        process.terminate()
        process.wait(SECONDS)
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


def churn_until_grown(mine: Engine, client: BareClient, held: list[str]) -> None:
    """Give slabs back and ask for others, as clients do all day, while the engine measures."""
    while not mine.will_say_more(seconds=0.01):
        if held:
            client.give_back("Release", held.pop(0))
        with suppress(Refused):
            held.append(client.acquire())
    assert mine.hear() == {"event": "grown"}


def lent_bytes(node: Node) -> float:
    samples = node.scrape()
    states = ("lent", "returning", "quarantined")
    return sum(samples[f'aqua_pool_bytes{{gpu="{GPU}",state="{state}"}}'] for state in states)


def acknowledge_all(client: BareClient, held: Sequence[str]) -> None:
    """Do what revokes ask, until nothing is held."""
    left = set(held)
    while left:
        frame = client.frame()
        if frame.WhichOneof("kind") == "revoke":
            named = set(frame.revoke.lease_ids) & left
            client.give_back("Acknowledge", *named)
            left -= named


def assert_nothing_changed(seen: dict[str, object]) -> None:
    assert seen["totals"] == [GPU_BYTES - seen_lent(seen)], "free memory changed while it profiled"
    first, last = int(str(seen["first"])), int(str(seen["last"]))
    assert first >= last  # the assertion of vLLM
    assert int(str(seen["looks"])) > 0


def seen_lent(seen: dict[str, object]) -> int:
    """What was lent as the engine began to measure."""
    totals = seen["totals"]
    assert isinstance(totals, list)
    return GPU_BYTES - int(totals[0])


def test_without_us_knowing_free_memory_changes() -> None:
    """The reason for the other three: an engine that nobody makes way for sees all that goes on."""
    with (
        running_node(gpus=1, gpu_bytes=GPU_BYTES, term_seconds=TERM_SECONDS) as node,
        BareClient(node.socket) as client,
    ):
        held = [client.acquire() for _ in range(3)]
        with engine(node) as mine:
            mine.measure()
            client.give_back("Release", *held)
            wait_until(lambda: lent_bytes(node) == 0, what="it is all free")
            assert mine.hear() == {"event": "grown"}
            seen = mine.measured()
            totals = seen["totals"]
            assert isinstance(totals, list)
            assert totals[0] == GPU_BYTES - 12 * MIB
            assert int(str(seen["last"])) > int(str(seen["first"]))  # what vLLM asserts is false


def test_under_aquactl_run_free_memory_does_not_change() -> None:
    """All that was lent has gone back before it starts; nothing is lent there until it has."""
    with (
        default_node() as node,
        BareClient(node.socket) as client,
        ThreadPoolExecutor(1) as borrower,
    ):
        moved_out = borrower.submit(acknowledge_all, client, [client.acquire() for _ in range(3)])
        with engine(node, *aquactl(node, "run"), "--gpu", GPU, "--") as mine:
            moved_out.result(SECONDS)
            mine.measure()
            churn_until_grown(mine, client, [])
            seen = mine.measured()
            assert_nothing_changed(seen)
            assert seen_lent(seen) == lent_bytes(node) == 0
            assert mine.end() == 0
        wait_until(lambda: acquires(client), what="it lends again")


def test_on_a_quiesced_gpu_free_memory_does_not_change() -> None:
    """Nothing is taken back or freed there, though a process has come; afterwards it is."""
    with default_node() as node, BareClient(node.socket) as client:
        held = [client.acquire() for _ in range(3)]
        with left_alone(node), engine(node) as mine:
            mine.measure()
            churn_until_grown(mine, client, held)
            assert held == []
            seen = mine.measured()
            assert_nothing_changed(seen)
            assert seen_lent(seen) == lent_bytes(node) == 12 * MIB
        wait_until(lambda: lent_bytes(node) == 0, what="what came back is free")
        wait_until(lambda: acquires(client), what="it lends again")


def test_a_newcomer_sees_free_memory_that_does_not_change() -> None:
    """Of itself, for as long as it grows: what was lent goes back first, then all is quiet."""
    with (
        running_node(
            gpus=1, gpu_bytes=GPU_BYTES, newcomer_seconds=1.5, term_seconds=TERM_SECONDS
        ) as node,
        BareClient(node.socket) as client,
    ):
        held = [client.acquire() for _ in range(3)]
        with engine(node, steps=18) as mine:  # longer than one that stood still would be left alone
            acknowledge_all(client, held)
            wait_until(lambda: lent_bytes(node) == 0, what="it is alone")
            mine.measure()
            churn_until_grown(mine, client, [])
            assert_nothing_changed(mine.measured())
            assert lent_bytes(node) == 0
            wait_until(lambda: acquires(client), what="it lends again once it has settled")


def acquires(client: BareClient) -> bool:
    with suppress(Refused):
        return bool(client.acquire())
    return False
