"""Nodes of few processes that hold much of two GPUs whose owner comes and goes: many revokes.

So there is nearly always another slab to be offered for one that was asked back.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from aqua_daemon.core.model import GpuUuid, LendingPolicy, SafetyClass
from aqua_daemon.core.sizes import MIB
from tests.simulation.chance import Chance
from tests.simulation.clients import Client
from tests.simulation.faults import Weather
from tests.simulation.node import MakeBroker, Node, real_broker
from tests.simulation.owners import Owners
from tests.simulation.run import Outcome, audit, everybody_leaves, heal, outcome_of, pass_time
from tests.simulation.scenario import Scenario, scenario_for
from tests.simulation.truth import Gpu

_GPUS = (GpuUuid("SHM-0"), GpuUuid("SHM-1"))
_STEPS = 250
_STEPS_BETWEEN_AUDITS = 10


def simulate_crowded(seed: int, make_broker: MakeBroker = real_broker) -> Outcome:
    """Run one such node to its end, or to the first promise that does not hold."""
    node = Node(seed, make_broker, _scenario(seed))
    return outcome_of(node, partial(_play, node), seed=seed, steps=_STEPS)


def _scenario(seed: int) -> Scenario:
    drawn = scenario_for(Chance(seed))
    settings = replace(
        drawn.settings,
        gpus=_GPUS,
        host_pool_bytes=2**30,
        tenant_host_bytes=2**30,
        tenant_quota_bytes=2**30,
        tenant_quota_leases=64,
        lend_to_own_gpu=True,
        lending_of=dict.fromkeys(_GPUS, LendingPolicy.AUTO),
        settle_seconds=0.0,
    )
    return replace(
        drawn,
        settings=settings,
        gpu_bytes=192 * MIB,
        keepers=(_GPUS[:1], _GPUS[1:]),
        clients=3,
        homes=(None, *_GPUS),
        step_seconds=0.1,
    )


def _play(node: Node) -> None:
    weather, owners = Weather(node), Owners(node.stage, node.oracle)
    for step in range(_STEPS):
        weather.act()
        ready = [client for client in node.living() if client.is_ready]
        if ready:
            _trade(node, owners, node.stage.chance.pick(ready))
        pass_time(node, node.stage.chance.between(0.0, 2 * node.scenario.step_seconds))
        if step % _STEPS_BETWEEN_AUDITS == 0:
            audit(node)
    heal(node)
    everybody_leaves(node)


def _trade(node: Node, owners: Owners, client: Client) -> None:
    """Somebody borrows, or somebody wants memory back."""
    chance = node.stage.chance
    if chance.happens(0.6):
        safety = chance.pick((SafetyClass.STORE, SafetyClass.CACHE))
        client.acquire(chance.pick((4, 4, 8)) * MIB, safety)
    if chance.happens(0.15):
        _change_owner(node, chance.pick(list(node.gpus.values())), client)
    if chance.happens(0.2):
        gpu = chance.pick(list(node.gpus.values()))
        if client.process.identity.pid in gpu.owners:
            owners.reclaim(client, gpu, chance.pick((4, 8, 24)) * MIB)
            offer = partial(owners.offer, client, gpu.uuid, gpu.total_bytes)
            node.stage.agenda.after(3.0, partial(client.caller.awake, offer))


def _change_owner(node: Node, gpu: Gpu, client: Client) -> None:
    """A process of the GPU has a burst, or lets go."""
    pid = client.process.identity.pid
    used = gpu.owners.get(pid, 0)
    wanted = node.stage.chance.pick((2, 16, 60)) * MIB
    gpu.owners[pid] = min(wanted, used + max(0, gpu.free_bytes))
    node.report_soon(gpu.uuid)
