"""What kind of elastic node a seed is: small slabs on large GPUs, so that shares are fine."""

from __future__ import annotations

from dataclasses import dataclass

from aqua_daemon.core.limits import Quota
from aqua_daemon.core.model import BrokerSettings, GpuUuid, LendingPolicy, TenantName
from aqua_daemon.core.sizes import GIB, MIB
from tests.simulation.chance import Chance
from tests.simulation.elastic.patterns import STEP_BYTES
from tests.simulation.scenario import Scenario

_PLENTY = 64 * GIB
_WEIGHTS = (1.0, 1.0, 0.7, 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticScenario:
    """A node, and what its admins have set."""

    node: Scenario
    quotas: dict[TenantName, Quota]
    is_home_full: bool  # the first GPU is everybody's home, and lends nothing

    def weight_of(self, tenant: TenantName) -> float:
        """Among its equals."""
        weight = self.quotas[tenant].weight if tenant in self.quotas else None
        return 1.0 if weight is None else weight


def elastic_scenario_for(chance: Chance) -> ElasticScenario:
    """The node that this run is about."""
    is_home_full = chance.happens(0.5)
    gpus = tuple(GpuUuid(f"SHM-{n}") for n in range(chance.pick((2, 2, 3)) + is_home_full))
    tenants = _tenants(chance)
    names = dict.fromkeys((*tenants, *(TenantName(one.partition("+")[0]) for one in tenants)))
    quotas = {
        name: Quota(revision=1, nbytes=None, weight=chance.pick(_WEIGHTS))
        for name in names
        if chance.happens(0.6)
    }
    node = Scenario(
        settings=_settings(chance, gpus),
        gpu_bytes=chance.pick((192, 256, 384)) * MIB,
        keepers=(gpus,) if chance.happens(0.4) else tuple((gpu,) for gpu in gpus),
        tenants=tenants,
        clients=0,
        homes=(gpus[0],) if is_home_full else (None,),
        step_seconds=0.25,
    )
    return ElasticScenario(node=node, quotas=quotas, is_home_full=is_home_full)


def _settings(chance: Chance, gpus: tuple[GpuUuid, ...]) -> BrokerSettings:
    policies = (LendingPolicy.AUTO, LendingPolicy.AUTO, LendingPolicy.OFFERED)
    return BrokerSettings(
        gpus=gpus,
        smallest_slab_bytes=STEP_BYTES,
        largest_slab_bytes=2 * STEP_BYTES,
        host_pool_bytes=_PLENTY,
        tenant_host_bytes=_PLENTY,
        tenant_quota_bytes=_PLENTY,
        term_seconds=3.0,
        restart_grace_seconds=4.5,
        lending_of={gpu: chance.pick(policies) for gpu in gpus},
        settle_seconds=chance.pick((0.0, 1.0, 3.0)),
        newcomer_seconds=chance.pick((0.0, 0.0, 1.0)),
        rebalance_seconds=chance.pick((0.5, 1.0, 2.0)),
    )


def _tenants(chance: Chance) -> tuple[TenantName, ...]:
    found: list[TenantName] = []
    for number in range(chance.pick((2, 3))):
        name = f"uid-{1000 + number}"
        if chance.happens(0.3):
            found += [TenantName(f"{name}+blue"), TenantName(f"{name}+red")]
        else:
            found.append(TenantName(name))
    return tuple(found)
