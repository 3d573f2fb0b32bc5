"""What opening costs when many slabs are open, and when one slab is very large."""

from __future__ import annotations

import statistics

from tests.gpu.probe.actors import Actor, Ended, Refused, Silent
from tests.gpu.probe.findings import Findings, milliseconds
from tests.gpu.probe.names import KINDS
from tests.gpu.probe.plan import GIB, MIB, Plan
from tests.gpu.probe.stage import Devices, started

SPARE_BYTES = 2 * GIB  # for contexts
LONGEST_OPEN_SECONDS = 60.0


def answer(plan: Plan, where: Devices, findings: Findings) -> None:
    by_count = {kind: _many(kind, plan, where) for kind in KINDS}
    findings.figures("seconds of each opening, in order", by_count)
    most = min(len(seconds) for seconds in by_count.values())
    for count in plan.slab_counts:
        if count > most:
            findings.row(f"the {count}th slab", f"not run: memory for {most} only")
            continue
        near = {kind: seconds[max(0, count - 4) : count] for kind, seconds in by_count.items()}
        answers = {kind: milliseconds(statistics.median(some)) for kind, some in near.items()}
        findings.both(f"opening slab {count} of {plan.counted_slab_bytes // MIB} MiB", answers)
    findings.both("all of them", {kind: milliseconds(sum(by_count[kind])) for kind in KINDS})
    for nbytes in _sizes(plan, where):
        large = {kind: _one(kind, nbytes, where) for kind in KINDS}
        findings.both(f"one slab of {nbytes / GIB:.3g} GiB", large)


def _free_bytes(where: Devices) -> int:
    return max(0, where.meter.total() - where.meter.settle() - SPARE_BYTES)


def _sizes(plan: Plan, where: Devices) -> list[int]:
    """Those that fit, and four fifths of what is free: there others saw it explode."""
    free = _free_bytes(where)
    most = free * 4 // 5 // (2 * MIB) * (2 * MIB)
    fitting = [nbytes for nbytes in plan.large_sizes if nbytes < free]
    return [*fitting, most] if most > max(plan.large_sizes) >= GIB else fitting


def _many(kind: str, plan: Plan, where: Devices) -> list[float]:
    """Seconds of each opening, all staying open."""
    nbytes = plan.counted_slab_bytes
    count = min(plan.slab_counts[-1], _free_bytes(where) // nbytes)
    with started(where.lender) as keeper, started(where.borrower) as client:
        return [_open_one(keeper, client, kind, nbytes) for _ in range(count)]


def _one(kind: str, nbytes: int, where: Devices) -> str:
    try:
        with started(where.lender) as keeper, started(where.borrower) as client:
            return milliseconds(_open_one(keeper, client, kind, nbytes))
    except (Refused, Silent, Ended) as error:
        return str(error)


def _open_one(keeper: Actor, client: Actor, kind: str, nbytes: int) -> float:
    slab = keeper.ask("allocate", kind=kind, nbytes=nbytes).number
    ticket = keeper.export(slab, kind=kind, nbytes=nbytes)
    opened = client.open(ticket, seconds=LONGEST_OPEN_SECONDS)
    ticket.close()
    return opened.times["whole"]
