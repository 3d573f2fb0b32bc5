"""How fast memory is scrubbed, and whether the next process would see what was left."""

from __future__ import annotations

from collections.abc import Callable

from tests.gpu.probe.driver import call, new_stream, stream_seconds, use_device
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.plan import GIB, MIB, Plan
from tests.gpu.probe.stage import FIRST, Devices, Notes, filled_slab, side_by_side, started

PAGE_BYTES = 2 * MIB
SPARE_BYTES = 2 * GIB


def answer(plan: Plan, where: Devices, findings: Findings) -> None:
    use_device(where.lender)
    rates = {nbytes: _rates(nbytes) for nbytes in plan.slab_sizes}
    findings.figures("GB/s by bytes", rates)
    for nbytes in (plan.slab_sizes[0], plan.slab_sizes[-1]):
        words = ", ".join(f"{name} {rate:.0f}" for name, rate in rates[nbytes].items())
        findings.row(f"scrub of {nbytes // MIB} MiB, GB/s", words)

    def ask(kind: str, notes: Notes) -> None:
        question = "left for the next allocation of the same process"
        notes[question] = _left_in_process(kind, plan, where)
        notes["left for the next process"] = _left_for_others(kind, plan, where)

    side_by_side(findings, ask)


def _rates(nbytes: int) -> dict[str, float]:
    pointer, stream = call("cuMemAlloc", nbytes), new_stream()
    begin = int(pointer)

    def in_chunks() -> None:
        for start in range(0, nbytes, 64 * MIB):
            length = min(64 * MIB, nbytes - start)
            call("cuMemsetD8Async", begin + start, 0, length, stream)

    ways: dict[str, Callable[[], object]] = {
        "bytes": lambda: call("cuMemsetD8Async", pointer, 0, nbytes, stream),
        "words": lambda: call("cuMemsetD32Async", pointer, 0, nbytes // 4, stream),
        "bytes in 64 MiB chunks": in_chunks,
    }
    try:
        return {name: _rate(stream, work, nbytes) for name, work in ways.items()}
    finally:
        call("cuStreamDestroy", stream)
        call("cuMemFree", pointer)


def _rate(stream: object, work: Callable[[], object], nbytes: int) -> float:
    stream_seconds(stream, work, repeats=2)
    return nbytes / max(stream_seconds(stream, work, repeats=8), 1e-9) / 1e9


def _left_in_process(kind: str, plan: Plan, where: Devices) -> str:
    with started(where.lender) as keeper:
        slab = filled_slab(keeper, kind=kind, nbytes=plan.slab_bytes)
        keeper.ask("free", number=slab)
        again = keeper.ask("allocate", kind=kind, nbytes=plan.slab_bytes).number
        same = keeper.ask("count", number=again, value=FIRST).number
    return _share(same, plan.slab_bytes)


def _left_for_others(kind: str, plan: Plan, where: Devices) -> str:
    """The first fills a lot and is gone; the second takes nearly everything, and looks."""
    free = where.meter.total() - where.meter.settle() - SPARE_BYTES
    quick = plan.slab_bytes < 64 * MIB  # a rehearsal
    most = min(free, 4 * plan.slab_bytes) if quick else free
    filled = min(most, 16 * plan.slab_bytes)
    with started(where.lender) as first:
        filled_slab(first, kind=kind, nbytes=filled // PAGE_BYTES * PAGE_BYTES)
    where.meter.settle()
    nbytes = most // PAGE_BYTES * PAGE_BYTES
    with started(where.lender) as second:
        all_of_it = second.ask("allocate", kind=kind, nbytes=nbytes, seconds=60.0).number
        asked = second.ask("sample", number=all_of_it, value=FIRST, seconds=120.0)
    left, pages = asked.number, filled // PAGE_BYTES
    return f"{left} of {pages} filled pages seen in {nbytes // PAGE_BYTES}"


def _share(found: int, nbytes: int) -> str:
    return "nothing" if not found else f"{100 * found / nbytes:.0f} % of the bytes"
