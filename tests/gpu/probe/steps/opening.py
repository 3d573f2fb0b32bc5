"""Who may open a handle, how often, in how many places, and what closing it does."""

from __future__ import annotations

from tests.gpu.probe.actors import outcome
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.plan import Plan
from tests.gpu.probe.stage import Devices, Lent, Notes, lent_slab, side_by_side, whose_bytes


def answer(plan: Plan, where: Devices, findings: Findings) -> None:
    def ask(kind: str, notes: Notes) -> None:
        with lent_slab(where, kind=kind, nbytes=plan.slab_bytes) as lent:
            opening = outcome(lambda: lent.keeper.open(lent.ticket), fine="opens")
            notes["in the exporting process"] = opening
        with lent_slab(where, kind=kind, nbytes=plan.slab_bytes) as lent:
            _twice(lent, notes)

    side_by_side(findings, ask)


def _twice(lent: Lent, notes: Notes) -> None:
    again: list[int] = []
    said = outcome(lambda: again.append(lent.client.open(lent.ticket).number))
    if not again:
        notes["opened twice by one process"] = said
        return
    first = lent.client.ask("pointer", number=lent.opened).number
    second = lent.client.ask("pointer", number=again[0]).number
    where = "the same address" if first == second else "another address"
    notes["opened twice by one process"] = f"works: {where}"
    notes["closed once, the other opening"] = _after_close(lent, lent.opened, again[0])
    closed = outcome(lambda: lent.client.ask("close", number=again[0]), fine="works")
    notes["closed a second time"] = closed
    # Last: what a close too many does to the process is not known.
    third = outcome(lambda: lent.client.ask("close", number=again[0]), fine="accepted")
    notes["closed once more than opened"] = third
    notes["the process afterwards"] = outcome(lambda: lent.client.ask("pid"), fine="lives")


def _after_close(lent: Lent, closed: int, other: int) -> str:
    said = outcome(lambda: lent.client.ask("close", number=closed))
    if said != "yes":
        return said
    return whose_bytes(lent.client, other, nbytes=lent.nbytes)
