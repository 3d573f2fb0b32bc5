"""A tenant closes a slab and keeps its handle: opened again, whose bytes does it read?"""

from __future__ import annotations

from tests.gpu.probe.actors import Actor, Ticket, outcome
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.meter import fall_after
from tests.gpu.probe.plan import Plan
from tests.gpu.probe.stage import (
    SECOND,
    THIRD,
    Devices,
    Notes,
    filled_slab,
    lent_slab,
    side_by_side,
    whose_bytes,
)


def answer(plan: Plan, where: Devices, findings: Findings) -> None:
    def ask(kind: str, notes: Notes) -> None:
        with lent_slab(where, kind=kind, nbytes=plan.slab_bytes) as lent:
            lent.client.ask("close", number=lent.opened)
            notes["opened again while it is allocated"] = _reopened(lent.client, lent.ticket)
            lent.keeper.ask("fill", number=lent.slab, value=0)
            lent.keeper.ask("fill", number=lent.slab, value=SECOND)
            question = "opened again after a scrub and the next tenant's writes"
            notes[question] = _reopened(lent.client, lent.ticket)
            where.meter.settle()
            fall = fall_after(
                where.meter,
                lambda: lent.keeper.ask("free", number=lent.slab),
                wanted_bytes=lent.nbytes,
                within=plan.wait_seconds,
            )
            notes["bytes back at the free, handle kept"] = str(fall)
            notes["opened again after the free"] = _reopened(lent.client, lent.ticket)
            filled_slab(lent.keeper, kind=kind, nbytes=lent.nbytes, value=THIRD)
            question = "opened again after the free and a new allocation"
            notes[question] = _reopened(lent.client, lent.ticket)
            where.meter.settle()
            lent.ticket.close()

    side_by_side(findings, ask)


def _reopened(client: Actor, ticket: Ticket) -> str:
    opened: list[int] = []
    said = outcome(lambda: opened.append(client.open(ticket).number))
    if not opened:
        return said
    shown = whose_bytes(client, opened[0], nbytes=ticket.nbytes)
    closed = outcome(lambda: client.ask("close", number=opened[0]))
    return shown if closed == "yes" else f"{shown}; closing: {closed}"
