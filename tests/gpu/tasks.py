"""All that is to be run on a machine with a GPU, in the order of what would be missed most.

A task is one process with a deadline: tests, one question of the probe, or one benchmark. Those that
only ask whether something is right may run beside each other; what measures a GPU runs alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.gpu.probe.names import KINDS
from tests.gpu.probe.steps import STEPS

CHECK, PROBE, BENCH = "check", "probe", "bench"
MODULES = {
    CHECK: "tests.gpu.checking",
    PROBE: "tests.gpu.probe.stepping",
    BENCH: "tests.gpu.benching",
}
LONGEST_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one process does, and how long it may take."""

    name: str
    kind: str
    question: str
    seconds: float
    alone: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Tests that are run together; *words* are pytest's."""

    name: str
    question: str
    words: tuple[str, ...]
    seconds: float = LONGEST_SECONDS
    alone: bool = True


def _of_kind(kind: str) -> tuple[Check, ...]:
    """For one kind of handle."""
    return (
        Check(
            name=f"door-{kind}",
            question=f"do the client's stream rules hold ({kind})?",
            words=("tests/gpu/test_client_door.py", "-k", f"{kind} and not owner"),
            alone=False,
        ),
        Check(
            name=f"slabs-{kind}",
            question=f"does the contract of slabs and deaths hold ({kind})?",
            words=(
                "tests/contract/test_slabs.py",
                "tests/contract/test_deaths.py",
                "tests/contract/test_users.py",
                "-k",
                f"cuda-{kind}",
            ),
        ),
        Check(
            name=f"owner-{kind}",
            question=f"does an owner that grows get its memory ({kind})?",
            words=("tests/gpu/test_client_door.py", "-k", f"{kind} and owner"),
            seconds=150.0,
        ),
        Check(
            name=f"leftovers-{kind}",
            question=f"does nobody see another's bytes over 1,000 leases ({kind})?",
            words=("tests/contract/test_on_cuda.py", "-k", f"cuda-{kind} and thousand"),
        ),
        Check(
            name=f"flat-{kind}",
            question=f"is everything flat over 10,000 leases ({kind})?",
            words=("tests/contract/test_flatness.py", "-k", f"cuda-{kind}"),
        ),
    )


CHECKS = (
    Check(
        name="fakes",
        question="do the made-up driver and NVML answer as the real ones?",
        words=("tests/cuda/test_fakes_are_true.py",),
        seconds=120.0,
        alone=False,
    ),
    Check(
        name="streams",
        question="do copies keep the order of streams, and captures live on?",
        words=("tests/contract/test_on_cuda.py", "-k", "order or capture"),
        alone=False,
    ),
    *(check for kind in KINDS for check in _of_kind(kind)),
    Check(
        name="kv-cache",
        question="does generate() give the same over leases, and is every byte exact?",
        words=("tests/gpu/test_kv_cache.py",),
    ),
)


BURSTS, SPEEDS = (25, 50, 100), (1, 2, 4)
_OF_EACH_KIND = {
    "paging": "what does parking a tensor cost beside plain copies, by size",
    "blocks": "what do scattered blocks cost, by each way and beside the ceiling",
    "both": "do copies in both directions overlap",
    "product": "what do copies and a matrix product cost each other",
    "lender": "how much slower is a lender that is scrubbed, or read and written",
    "returns": "how soon is lent memory back, and lent again",
}
# What handles slabs came by makes no difference once they are open.
_OF_THE_DEFAULT = {
    "prompt": "what does a long prompt cost, streamed by layer",
    **{
        f"burst{size}": f"what do people wait for when {size} come at once, and what does it cost"
        for size in BURSTS
    },
    **{
        f"trace{speed}x": f"the same of a trace, {speed} times as fast as it came"
        for speed in SPEEDS
    },
    "adapters": "what does a switch among 200 LoRA adapters cost",
    "longest": "what does the longest prompt cost",
}
DEFAULT_KIND = "legacy"


def _benchmark(name: str, question: str, kind: str) -> Task:
    question = f"{question} ({kind})?"
    return Task(name=f"{name}-{kind}", kind=BENCH, question=question, seconds=LONGEST_SECONDS)


BENCHMARKS = (
    *(_benchmark(*item, kind) for item in _OF_EACH_KIND.items() for kind in KINDS),
    *(_benchmark(*item, DEFAULT_KIND) for item in _OF_THE_DEFAULT.items()),
)


# A first call of some minutes gives the figures that everything is judged by; what follows is what
# would be missed most of the rest. Those that may run beside each other are neighbours; no check goes on
# where it was cut short, so the long ones come before the end of that call.
_FIRST = (
    *("machine", "fakes"),
    *("paging-legacy", "blocks-legacy", "streams", "door-legacy", "door-vmm"),
    *("both-legacy", "product-legacy", "returns-legacy"),
    *("exporter_death", "free_while_mapped", "handle_identity", "kept_handle", "contexts", "costs"),
    *("burst50-legacy", "lender-legacy", "paging-vmm", "blocks-vmm", "prompt-legacy"),
    *("slabs-legacy", "slabs-vmm", "stalls", "bandwidth"),
    *("burst25-legacy", "burst100-legacy", "trace2x-legacy", "adapters-legacy", "longest-legacy"),
    *("trace1x-legacy", "trace4x-legacy", "returns-vmm", "both-vmm", "product-vmm", "lender-vmm"),
    *(f"{name}-{kind}" for kind in KINDS for name in ("owner", "leftovers")),
)


def _tasks() -> Iterator[Task]:
    known = {task.name: task for task in (*_checks(), *_questions(), *BENCHMARKS)}
    for name in _FIRST:
        yield known.pop(name)
    yield from known.values()


def _checks() -> Iterator[Task]:
    for check in CHECKS:
        yield Task(
            name=check.name,
            kind=CHECK,
            question=check.question,
            seconds=check.seconds,
            alone=check.alone,
        )


def _questions() -> Iterator[Task]:
    for step in STEPS:
        seconds = min(step.seconds, LONGEST_SECONDS)
        yield Task(name=step.name, kind=PROBE, question=step.question, seconds=seconds)


TASKS = tuple(_tasks())
