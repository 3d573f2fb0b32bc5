"""How soon an owner has its memory back while the consumer that borrowed it goes on computing.

One GPU lends, so what is moved goes to host memory. The daemon's own journal says when the revokes
went out, when the last slab was acknowledged (the goal's end) and when the keeper had scrubbed and
freed it (told apart). Beside it: a plain copy of as many bytes in the same process beside the same
load, with as much of its destination touched; the same with an interpreter that is kept busy; and
the paper's protocol, in which consumers look for a request every 4 s and then stop to copy. Beside
what is only unmapped: a plain munmap beside the same load, which of 4 KiB pages alone takes longer than
the goal from 1 GiB on (on two cores two threads were no faster at it); of huge pages it takes a tenth,
which the library has slabs be made of once they are quiet. Each take-back begins when that has been done.
"""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tests.benchmarks.deaths import is_told, moves
from tests.benchmarks.figure import Figure
from tests.benchmarks.owners import Owner, running_owner
from tests.end_to_end.programs import Program
from tests.nodes import MIB, Node, environment, running_node, wait_until

SUBJECT = "taking back"
GPUS, GPU_BYTES = 8, 4096 * MIB
LENDER = "SHM-1"
SIZES = (64 * MIB, 1024 * MIB, 2048 * MIB)
TIMES_COPY, MORE_MS = 1.3, 20.0
CHEAP_MS = 20.0
DEADLINE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """One reclaim, in milliseconds."""

    first: float  # from the revokes to the first acknowledgement
    acknowledged: float  # and to the last
    freed: float  # from there to the last byte scrubbed and freed
    answered: float  # from the owner's call to its answer
    touched: int  # bytes of host memory that were kept touched for it


def measure() -> Iterator[Figure]:
    """Measure on a node of its own."""
    never = ",".join(f"SHM-{number}=never" for number in range(2, GPUS))
    with (
        running_node(gpus=GPUS, gpu_bytes=GPU_BYTES, lending_of=never) as node,
        running_owner(node, LENDER) as owner,
        _consumer(node) as consumer,
    ):
        for nbytes in SIZES:
            yield _store(node, owner, consumer, nbytes)
        for nbytes in SIZES:
            for how, name in (("park cache", "clean `cache`"), ("forget store", "unused slabs")):
                back = _take_back(node, owner, consumer, how, nbytes)
                unmap_ms = _ms(consumer.ask(f"unmap {nbytes}"))
                beside = f"a plain munmap of as many touched bytes {unmap_ms:,.0f} ms"
                yield _figure(f"{_size(nbytes)} of {name}", back, CHEAP_MS, beside)


def _store(node: Node, owner: Owner, consumer: Program, nbytes: int) -> Figure:
    back = _take_back(node, owner, consumer, "park store", nbytes)
    copy_ms = _ms(consumer.ask(f"copy {nbytes} {min(nbytes, back.touched)}"))
    paper_ms = _ms(consumer.ask(f"paper {nbytes}"))
    consumer.ask("load python")
    busy = _take_back(node, owner, consumer, "park store", nbytes)
    busy_copy_ms = _ms(consumer.ask(f"copy {nbytes} {min(nbytes, busy.touched)}"))
    consumer.ask("load torch")
    beside = (
        f"a plain copy {copy_ms:,.0f} ms, the paper's protocol {paper_ms:,.0f} ms; "
        f"beside a busy interpreter {busy.acknowledged:,.0f} ms (copy {busy_copy_ms:,.0f} ms)"
    )
    goal = TIMES_COPY * copy_ms + MORE_MS
    return _figure(f"{_size(nbytes)} of `store`", back, goal, beside)


def _figure(name: str, back: Returned, at_most: float, beside: str) -> Figure:
    rest = (
        f"the first slab after {back.first:,.0f} ms; all scrubbed and freed {back.freed:,.0f} ms later; "
        f"owner waits {back.answered:,.0f} ms"
    )
    return Figure(
        subject=SUBJECT,
        name=f"{name}, to the last acknowledgement",
        value=back.acknowledged,
        unit="ms",
        rival="; ".join(filter(None, (beside, rest))),
        at_most=at_most,
    )


def _take_back(node: Node, owner: Owner, consumer: Program, how: str, nbytes: int) -> Returned:
    owner.ask(f"lend {GPU_BYTES}")
    wait_until(
        lambda: node.scrape()[f'aqua_lendable_bytes{{gpu="{LENDER}"}}'] >= nbytes,
        seconds=60,
        what=f"{LENDER} lends",
    )
    parked = consumer.ask(f"{how} {nbytes}")
    since = dt.datetime.now()  # noqa: DTZ005 - as the journal writes it
    said = owner.ask(f"reclaim {GPU_BYTES} {DEADLINE_SECONDS}")
    assert said["freed_bytes"] >= nbytes, f"{said['freed_bytes']} of {nbytes} bytes came back"
    checked = consumer.ask("check")
    # `cache` is dropped at a revoke: that is what makes it cheap.
    lost = checked["of"] if "cache" in how else 0
    assert checked["lost"] == lost, checked
    assert int(str(checked["equal"])) + int(str(checked["lost"])) == checked["of"], checked
    wait_until(lambda: is_told(node.log(), since), seconds=10, what="the journal has it")
    told = list(moves(node.log(), since))
    asked = min(at for at, before, _ in told if before == "leased")
    acknowledged = [at for at, _, after in told if after == "returned"]
    freed = max(at for at, _, after in told if after is None)
    return Returned(
        first=(min(acknowledged) - asked) / dt.timedelta(milliseconds=1),
        acknowledged=(max(acknowledged) - asked) / dt.timedelta(milliseconds=1),
        freed=(freed - max(acknowledged)) / dt.timedelta(milliseconds=1),
        answered=(said["answered_at"] - said["asked_at"]) * 1e3,
        touched=int(float(str(parked["touched"]))),
    )


@contextmanager
def _consumer(node: Node) -> Iterator[Program]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.computing"],
        env=environment(
            AQUA_SOCKET=node.socket,
            AQUA_HOME_GPU="SHM-0",
            AQUA_HOST_LIMIT="4GiB",
            AQUA_CONNECT_SECONDS="10",
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


def _ms(answer: Mapping[str, object]) -> float:
    return float(str(answer["seconds"])) * 1e3


def _size(nbytes: int) -> str:
    return f"{nbytes // MIB} MiB" if nbytes < 1024 * MIB else f"{nbytes // (1024 * MIB)} GiB"
