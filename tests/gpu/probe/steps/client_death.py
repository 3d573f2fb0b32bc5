"""A client is killed with a slab open: when does NVML see its bytes back? And if it had forked?"""

from __future__ import annotations

import os
import signal

from tests.gpu.probe.findings import Findings
from tests.gpu.probe.meter import fall_after
from tests.gpu.probe.plan import Plan
from tests.gpu.probe.stage import Devices, Notes, lent_slab, side_by_side


def answer(plan: Plan, where: Devices, findings: Findings) -> None:
    def ask(kind: str, notes: Notes) -> None:
        _killed_then_freed(kind, plan, where, notes)
        _freed_then_killed(kind, plan, where, notes)
        _killed_with_a_child(kind, plan, where, notes)

    side_by_side(findings, ask)


def _killed_then_freed(kind: str, plan: Plan, where: Devices, notes: Notes) -> None:
    with lent_slab(where, kind=kind, nbytes=plan.slab_bytes) as lent:
        lent.ticket.close()
        where.meter.settle()
        if where.shared:  # its context is on the same GPU: any fall of at least a MiB is that
            fall = fall_after(
                where.meter, lent.client.kill, wanted_bytes=2**20, within=plan.wait_seconds
            )
            notes["client killed: its context's bytes begin to return"] = str(fall)
        lent.client.kill()
        where.meter.settle()
        fall = fall_after(
            where.meter,
            lambda: lent.keeper.ask("free", number=lent.slab),
            wanted_bytes=lent.nbytes,
            within=plan.wait_seconds,
        )
        notes["the keeper frees after that: the slab's bytes"] = str(fall)


def _freed_then_killed(kind: str, plan: Plan, where: Devices, notes: Notes) -> None:
    with lent_slab(where, kind=kind, nbytes=plan.slab_bytes) as lent:
        lent.ticket.close()
        lent.keeper.ask("free", number=lent.slab)
        where.meter.settle()
        fall = fall_after(
            where.meter, lent.client.kill, wanted_bytes=lent.nbytes, within=plan.wait_seconds
        )
        notes["freed while mapped, then the client killed"] = str(fall)


def _killed_with_a_child(kind: str, plan: Plan, where: Devices, notes: Notes) -> None:
    """The child did nothing but inherit; what it keeps alive is what the sentinel is for."""
    with lent_slab(where, kind=kind, nbytes=plan.slab_bytes) as lent:
        lent.ticket.close()
        child = lent.client.ask("fork").number
        lent.keeper.ask("free", number=lent.slab)
        where.meter.settle()
        fall = fall_after(
            where.meter, lent.client.kill, wanted_bytes=lent.nbytes, within=plan.wait_seconds
        )
        notes["the same, its forked child alive"] = str(fall)
        fall = fall_after(
            where.meter,
            lambda: os.kill(child, signal.SIGKILL),
            wanted_bytes=lent.nbytes,
            within=plan.wait_seconds,
        )
        notes["then the child killed too"] = str(fall)
