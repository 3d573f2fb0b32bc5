"""The keeper frees a slab that a client has open: an error? readable? who gets the bytes, when?"""

from __future__ import annotations

from tests.gpu.probe.actors import outcome
from tests.gpu.probe.findings import Findings, milliseconds
from tests.gpu.probe.meter import fall_after
from tests.gpu.probe.plan import Plan
from tests.gpu.probe.stage import (
    SECOND,
    THIRD,
    Devices,
    Lent,
    Notes,
    filled_slab,
    lent_slab,
    side_by_side,
    whose_bytes,
)


def answer(plan: Plan, where: Devices, findings: Findings) -> None:
    def ask(kind: str, notes: Notes) -> None:
        with lent_slab(where, kind=kind, nbytes=plan.slab_bytes) as lent:
            _ask(lent, plan, where, notes)

    side_by_side(findings, ask)


def _ask(lent: Lent, plan: Plan, where: Devices, notes: Notes) -> None:
    lent.ticket.close()
    meter, said = where.meter, []
    meter.settle()
    fall = fall_after(
        meter,
        lambda: said.append(outcome(lambda: _free(lent, notes))),
        wanted_bytes=lent.nbytes,
        within=plan.wait_seconds,
    )
    notes["free while mapped"] = "accepted" if said == ["yes"] else said[0]
    notes["bytes back at that free"] = str(fall)
    notes["the mapping after that free"] = whose_bytes(lent.client, lent.opened, nbytes=lent.nbytes)
    other = filled_slab(lent.keeper, kind=lent.kind, nbytes=lent.nbytes, value=SECOND)
    notes["the mapping after the keeper's next allocation"] = whose_bytes(
        lent.client, lent.opened, nbytes=lent.nbytes
    )
    written = outcome(lambda: lent.client.ask("fill", number=lent.opened, value=THIRD))
    notes["a write through the stale mapping"] = "accepted" if written == "yes" else written
    notes["the next tenant's slab after that write"] = whose_bytes(
        lent.keeper, other, nbytes=lent.nbytes
    )
    meter.settle()
    fall = fall_after(
        meter,
        lambda: said.append(outcome(lambda: lent.client.ask("close", number=lent.opened))),
        wanted_bytes=lent.nbytes,
        within=plan.wait_seconds,
    )
    notes["close after that free"] = "works" if said[-1] == "yes" else said[-1]
    notes["bytes back at that close"] = str(fall)


def _free(lent: Lent, notes: Notes) -> None:
    times = lent.keeper.ask("free", number=lent.slab).times
    notes["how long that free took"] = milliseconds(times["whole"])
