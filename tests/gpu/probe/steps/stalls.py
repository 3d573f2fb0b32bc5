"""A user launches small work without end: how long does a launch wait while memory is managed?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.gpu.probe.actors import Actor, Ended, Refused, Silent, Ticket
from tests.gpu.probe.findings import Findings, milliseconds
from tests.gpu.probe.launching import torch_has_cuda
from tests.gpu.probe.names import KINDS, Times
from tests.gpu.probe.plan import Plan
from tests.gpu.probe.stage import Devices, filled_slab, started

Work = Callable[[], object]


def answer(plan: Plan, where: Devices, findings: Findings) -> None:
    by = "torch" if torch_has_cuda() else "driver"
    findings.row("the user's launches are", f"{by}'s, each waited for")
    with started(where.borrower) as user, started(where.lender) as keeper:
        user.ask("launch", text=by, seconds=90.0)
        calm = _during(user, lambda: time.sleep(plan.stall_seconds), plan)
        findings.row("calm", _words(calm))
        found: dict[str, dict[str, Times]] = {"calm": {"": calm}}
        for kind in KINDS:
            found[kind] = _all(user, keeper, kind, plan)
        user.ask("stop")
    findings.figures("launch seconds", found)
    for name in found[KINDS[0]]:
        findings.both(name, {kind: _words(found[kind].get(name, {})) for kind in KINDS})


def _all(user: Actor, keeper: Actor, kind: str, plan: Plan) -> dict[str, Times]:
    """Each kind of work, repeated while the launches run."""
    nbytes = plan.stall_bytes
    with _exported(keeper, kind, nbytes) as (slab, ticket):
        works: dict[str, Work] = {
            "another process allocates and frees": lambda: _make_and_free(keeper, kind, nbytes),
            "another process scrubs": lambda: keeper.ask("fill", number=slab, value=0),
            "the user's process opens and closes": lambda: _open_and_close(user, ticket),
            "the user's process allocates and frees": lambda: _make_and_free(user, kind, nbytes),
            "the user's process pins and unpins": lambda: user.ask("pin", nbytes=nbytes),
        }
        return {name: _tried(user, work, plan) for name, work in works.items()}


@contextmanager
def _exported(keeper: Actor, kind: str, nbytes: int) -> Iterator[tuple[int, Ticket]]:
    slab = filled_slab(keeper, kind=kind, nbytes=nbytes)
    ticket = keeper.export(slab, kind=kind, nbytes=nbytes)
    try:
        yield slab, ticket
    finally:
        ticket.close()
        keeper.ask("free", number=slab)


def _make_and_free(actor: Actor, kind: str, nbytes: int) -> None:
    number = actor.ask("allocate", kind=kind, nbytes=nbytes).number
    actor.ask("free", number=number)


def _open_and_close(user: Actor, ticket: Ticket) -> None:
    number = user.open(ticket).number
    user.ask("close", number=number)


def _tried(user: Actor, work: Work, plan: Plan) -> Times:
    try:
        return _during(user, work, plan)
    except (Ended, Refused, Silent):
        return {}


def _during(user: Actor, work: Work, plan: Plan) -> Times:
    """What launches took while *work* was done again and again."""
    user.ask("launched")
    deadline = time.monotonic() + plan.stall_seconds
    rounds = 0
    while rounds == 0 or time.monotonic() < deadline:
        work()
        rounds += 1
    return {**user.ask("launched").times, "rounds": float(rounds)}


def _words(times: Times) -> str:
    if not times.get("launches"):
        return "no launch in that time"
    names = ("median", "p99", "longest")
    return ", ".join(f"{name} {milliseconds(times[name])}" for name in names)
