"""A client has a slab open when its exporter is killed: readable? when do the bytes return?"""

from __future__ import annotations

from tests.gpu.probe.actors import outcome
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.meter import fall_after
from tests.gpu.probe.plan import Plan
from tests.gpu.probe.stage import (
    Devices,
    Lent,
    Notes,
    change,
    lent_slab,
    side_by_side,
    started,
    whose_bytes,
)


def answer(plan: Plan, where: Devices, findings: Findings) -> None:
    def ask(kind: str, notes: Notes) -> None:
        with lent_slab(where, kind=kind, nbytes=plan.slab_bytes) as lent:
            _ask(lent, plan, where, notes)

    side_by_side(findings, ask)


def _ask(lent: Lent, plan: Plan, where: Devices, notes: Notes) -> None:
    meter = where.meter
    notes["NVML charges the client before"] = meter.charged(lent.client.pid)
    before = meter.settle()
    lent.keeper.kill()
    notes["NVML's change at the exporter's death"] = change(before, meter.settle())
    notes["the mapping after the exporter's death"] = whose_bytes(
        lent.client, lent.opened, nbytes=lent.nbytes
    )
    fill = outcome(lambda: lent.client.ask("fill", number=lent.opened, value=0x11), fine="works")
    notes["a write into the mapping then"] = fill
    notes["NVML charges the client then"] = meter.charged(lent.client.pid)
    with started(where.borrower) as stranger:
        opening = outcome(lambda: stranger.open(lent.ticket), fine="opens")
        notes["a process that opens the handle then"] = opening
    lent.ticket.close()  # the tests' own descriptor would keep the memory alive
    meter.settle()
    closing: list[str] = []
    fall = fall_after(
        meter,
        lambda: closing.append(outcome(lambda: lent.client.ask("close", number=lent.opened))),
        wanted_bytes=lent.nbytes,
        within=plan.wait_seconds,
    )
    notes["closing the mapping then"] = "works" if closing == ["yes"] else closing[0]
    notes["bytes back at that close"] = str(fall)
    ending = fall_after(meter, lent.client.kill, wanted_bytes=lent.nbytes, within=plan.wait_seconds)
    notes["bytes back at the client's death (with its context)"] = str(ending)
