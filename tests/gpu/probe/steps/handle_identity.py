"""Free, allocate again: is the handle the same, and what does the old one, or a mapping, show?"""

from __future__ import annotations

from tests.gpu.probe.actors import Actor, Ticket, outcome
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.names import VMM
from tests.gpu.probe.plan import Plan
from tests.gpu.probe.stage import (
    SECOND,
    Devices,
    Notes,
    filled_slab,
    lent_slab,
    side_by_side,
    started,
    whose_bytes,
)


def answer(plan: Plan, where: Devices, findings: Findings) -> None:
    def ask(kind: str, notes: Notes) -> None:
        with started(where.lender) as keeper, started(where.borrower) as client:
            _old_handle(keeper, client, kind, plan.slab_bytes, notes)
        with lent_slab(where, kind=kind, nbytes=plan.slab_bytes) as lent:
            first = lent.client.ask("pointer", number=lent.opened).number
            lent.keeper.ask("free", number=lent.slab)
            new = filled_slab(lent.keeper, kind=kind, nbytes=lent.nbytes, value=SECOND)
            ticket = lent.keeper.export(new, kind=kind, nbytes=lent.nbytes)
            _open_beside_stale(lent.client, ticket, first, notes)
            ticket.close()

    side_by_side(findings, ask)


def _old_handle(keeper: Actor, client: Actor, kind: str, nbytes: int, notes: Notes) -> None:
    slab = filled_slab(keeper, kind=kind, nbytes=nbytes)
    address = keeper.ask("pointer", number=slab).number
    old = keeper.export(slab, kind=kind, nbytes=nbytes)
    keeper.ask("free", number=slab)
    again = filled_slab(keeper, kind=kind, nbytes=nbytes, value=SECOND)
    new = keeper.export(again, kind=kind, nbytes=nbytes)
    same = keeper.ask("pointer", number=again).number == address
    notes["free, then allocate: the same address"] = "yes" if same else "no"
    notes["handle byte-identical then"] = _identical(old, new)
    notes["the old handle then"] = _what_it_opens(client, old)
    beside = filled_slab(keeper, kind=kind, nbytes=nbytes)
    third = keeper.export(beside, kind=kind, nbytes=nbytes)
    notes["handle identical if allocated before the free"] = _identical(new, third)
    for ticket in (old, new, third):
        ticket.close()


def _identical(one: Ticket, other: Ticket) -> str:
    if one.kind == VMM:
        return "does not apply: descriptors"
    return "yes" if one.handle == other.handle else "no"


def _what_it_opens(client: Actor, ticket: Ticket) -> str:
    opened: list[int] = []
    said = outcome(lambda: opened.append(client.open(ticket).number))
    return whose_bytes(client, opened[0], nbytes=ticket.nbytes) if opened else said


def _open_beside_stale(client: Actor, ticket: Ticket, stale_pointer: int, notes: Notes) -> None:
    """Open the new slab while a mapping of the freed one is still there."""
    opened: list[int] = []
    said = outcome(lambda: opened.append(client.open(ticket).number))
    question = "opening the new slab beside a stale mapping"
    if not opened:
        notes[question] = said
        return
    same = client.ask("pointer", number=opened[0]).number == stale_pointer
    shown = whose_bytes(client, opened[0], nbytes=ticket.nbytes)
    notes[question] = f"{'the stale address' if same else 'a new address'}, {shown}"
