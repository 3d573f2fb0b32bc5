"""What a keeper and a client cost on a GPU: contexts, by NVML before and after."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

from tests.gpu.probe.actors import Actor, Ended, Refused, Silent, outcome
from tests.gpu.probe.findings import Findings, mebibytes, milliseconds
from tests.gpu.probe.launching import torch_has_cuda
from tests.gpu.probe.names import VMM
from tests.gpu.probe.plan import Plan
from tests.gpu.probe.stage import Devices, Notes, filled_slab, side_by_side, started


def answer(plan: Plan, where: Devices, findings: Findings) -> None:
    findings.row("a process's context (no kernels)", _context(where))
    findings.row("a keeper with an empty MPS pipe directory", _without_mps(where))
    findings.row("a torch process with one tensor", _torch(where))
    findings.row("a descriptor keeper without a context", _no_context(plan, where))

    def ask(kind: str, notes: Notes) -> None:
        with started(where.lender) as keeper:
            base = where.meter.settle()
            slab = filled_slab(keeper, kind=kind, nbytes=plan.slab_bytes)
            made = where.meter.settle() - base - plan.slab_bytes
            notes["a keeper's bytes beyond its first slab"] = mebibytes(made)
            with started(where.borrower) as client:
                ticket = keeper.export(slab, kind=kind, nbytes=plan.slab_bytes)
                base = where.meter.settle()
                client.open(ticket)
                cost = mebibytes(where.meter.settle() - base)
                notes["a client's opening costs the lender's GPU"] = cost
                ticket.close()

    side_by_side(findings, ask)


def _context(where: Devices) -> str:
    with Actor() as actor:
        base = where.meter.settle()
        actor.ask("init")
        initialised = where.meter.settle()
        times = actor.ask("context", number=where.lender).times
        made = where.meter.settle()
    words = f"{mebibytes(made - initialised)} in {milliseconds(times['context'])}"
    return f"{words}; cuInit alone {mebibytes(initialised - base)}"


def _without_mps(where: Devices) -> str:
    with tempfile.TemporaryDirectory() as empty:
        variables = {"CUDA_MPS_PIPE_DIRECTORY": empty}
        with Actor(environment=variables) as actor:
            return outcome(lambda: actor.ask("context", number=where.lender), fine="starts")


def _torch(where: Devices) -> str:
    if not torch_has_cuda():
        return "not run: torch sees no CUDA device"

    def cost() -> str:
        with Actor() as actor:
            base = where.meter.settle()
            times = actor.ask("torch", number=where.lender, seconds=90.0).times
            return f"{mebibytes(where.meter.settle() - base)} in {milliseconds(times['torch'])}"

    return _or_what_went_wrong(cost)


def _no_context(plan: Plan, where: Devices) -> str:
    def cost() -> str:
        with Actor() as keeper:
            base = where.meter.settle()
            keeper.ask("init")
            slab = keeper.ask("create", kind=VMM, nbytes=plan.slab_bytes).number
            ticket = keeper.export(slab, kind=VMM, nbytes=plan.slab_bytes)
            extra = where.meter.settle() - base - plan.slab_bytes
            with started(where.borrower) as client:
                opening = outcome(lambda: client.open(ticket), fine="opens")
            ticket.close()
        return f"creates and exports, {mebibytes(extra)} beyond the slab; a client {opening}"

    return _or_what_went_wrong(cost)


def _or_what_went_wrong(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except (Refused, Silent, Ended) as error:
        return str(error)
