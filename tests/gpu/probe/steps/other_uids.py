"""A slab of one user's keeper, opened by another user's process."""

from __future__ import annotations

import os

from tests.gpu.probe.actors import Actor, outcome
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.plan import Plan
from tests.gpu.probe.stage import Devices, Notes, filled_slab, side_by_side, whose_bytes

NOBODY, SOMEBODY = 65534, 64646  # uids that own nothing; the second has no name either


def answer(plan: Plan, where: Devices, findings: Findings) -> None:
    if os.geteuid() != 0:
        findings.row("handles between users", "not run: only root can become others")
        return

    def ask(kind: str, notes: Notes) -> None:
        notes["root's slab, a user's client"] = _between(0, NOBODY, kind, plan, where)
        notes["one user's slab, another's client"] = _between(SOMEBODY, NOBODY, kind, plan, where)
        notes["a user's slab, root's client"] = _between(NOBODY, 0, kind, plan, where)

    side_by_side(findings, ask)


def _between(keeper_uid: int, client_uid: int, kind: str, plan: Plan, where: Devices) -> str:
    with Actor() as keeper, Actor() as client:
        for actor, uid, ordinal in (
            (keeper, keeper_uid, where.lender),
            (client, client_uid, where.borrower),
        ):
            if uid:
                actor.ask("become", number=uid)
            actor.ask("context", number=ordinal)
        slab = filled_slab(keeper, kind=kind, nbytes=plan.slab_bytes)
        ticket = keeper.export(slab, kind=kind, nbytes=plan.slab_bytes)
        opened: list[int] = []
        said = outcome(lambda: opened.append(client.open(ticket).number))
        ticket.close()
        if not opened:
            return said
        return f"opens, {whose_bytes(client, opened[0], nbytes=plan.slab_bytes)}"
