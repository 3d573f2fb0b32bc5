"""What each step in a slab's life costs, by the slab's size: median seconds, both kinds."""

from __future__ import annotations

import statistics

from tests.gpu.probe.actors import Actor
from tests.gpu.probe.findings import Findings, milliseconds
from tests.gpu.probe.names import KINDS, Times
from tests.gpu.probe.plan import MIB, Plan
from tests.gpu.probe.stage import Devices, started

Costs = dict[str, float]
MAP = "of it: map"
MAPPING = ("reserve", "map", "set_access")  # what is one call with legacy handles


def answer(plan: Plan, where: Devices, findings: Findings) -> None:
    found: dict[str, dict[int, Costs]] = {}
    for kind in KINDS:
        with started(where.lender) as keeper, started(where.borrower) as client:
            found[kind] = {
                nbytes: _life(keeper, client, kind, nbytes, plan.repeats)
                for nbytes in plan.slab_sizes
            }
    findings.figures("median seconds by bytes", found)
    for nbytes in _shown(plan.slab_sizes):
        for name in ("allocate", "export", "scrub", "open", MAP, "close", "free"):
            costs = {kind: _words(by_size[nbytes], name) for kind, by_size in found.items()}
            findings.both(f"{name}, {nbytes // MIB} MiB", costs)


def _words(costs: Costs, name: str) -> str:
    if name != MAP:
        return milliseconds(costs[name])
    parts = [costs[f"open: {part}"] for part in MAPPING if f"open: {part}" in costs]
    return milliseconds(sum(parts)) if parts else "is the opening itself"


def _shown(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The smallest, the middle one and the largest."""
    return tuple(dict.fromkeys((sizes[0], sizes[len(sizes) // 2], sizes[-1])))


def _life(keeper: Actor, client: Actor, kind: str, nbytes: int, repeats: int) -> Costs:
    lives = [_one_life(keeper, client, kind, nbytes) for _ in range(repeats + 1)]
    names = lives[0]
    return {name: statistics.median(life[name] for life in lives[1:]) for name in names}


def _one_life(keeper: Actor, client: Actor, kind: str, nbytes: int) -> Costs:
    """One slab from its making to its end; parts of a phase as `phase: part`."""
    made = keeper.ask("allocate", kind=kind, nbytes=nbytes)
    scrub = keeper.ask("fill", number=made.number, value=0).times["whole"]
    ticket = keeper.export(made.number, kind=kind, nbytes=nbytes)
    exported = keeper.ask("pid").times["whole"]  # what an empty request costs here
    opened = client.open(ticket)
    ticket.close()
    first = client.ask("read", number=opened.number, nbytes=64).times["whole"]
    closed = client.ask("close", number=opened.number)
    freed = keeper.ask("free", number=made.number)
    phases = (("allocate", made.times), ("open", opened.times), ("close", closed.times))
    costs: Costs = {"scrub": scrub, "first read": first, "empty request": exported}
    for phase, times in (*phases, ("free", freed.times)):
        costs |= {phase: times["whole"], **_parts(phase, times)}
    again = keeper.ask("allocate", kind=kind, nbytes=nbytes).number
    costs["export"] = _export_cost(keeper, again)
    keeper.ask("free", number=again)
    return costs


def _parts(phase: str, times: Times) -> Costs:
    return {f"{phase}: {name}": seconds for name, seconds in times.items() if name != "whole"}


def _export_cost(keeper: Actor, number: int) -> float:
    reply = keeper.ask("export", number=number)
    if reply.descriptor is not None:
        import os

        os.close(reply.descriptor)
    return reply.times["export"]
