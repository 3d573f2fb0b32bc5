"""What kind of node a seed is: its GPUs, tenants, sizes and terms."""

from __future__ import annotations

from dataclasses import dataclass

from aqua_daemon.core.model import BrokerSettings, GpuUuid, LendingPolicy, TenantName
from aqua_daemon.core.sizes import GIB, MIB
from tests.simulation.chance import Chance

_POLICIES = (*[LendingPolicy.AUTO] * 8, LendingPolicy.OFFERED, LendingPolicy.NEVER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One node. Small on purpose: quotas, reserves and pools must be hit."""

    settings: BrokerSettings
    gpu_bytes: int
    keepers: tuple[tuple[GpuUuid, ...], ...]  # which GPUs each keeper has
    tenants: tuple[TenantName, ...]
    clients: int  # at the start, and at most at any time
    homes: tuple[GpuUuid | None, ...]  # of clients
    step_seconds: float  # mean


def scenario_for(chance: Chance) -> Scenario:
    """The node that this run is about."""
    gpus = tuple(GpuUuid(f"SHM-{n}") for n in range(chance.pick((2, 3, 4))))
    one_keeper = chance.happens(0.4)
    term = chance.pick((2.0, 3.0, 10.0))
    settings = BrokerSettings(
        gpus=gpus,
        smallest_slab_bytes=4 * MIB,
        largest_slab_bytes=16 * MIB,
        host_pool_bytes=chance.pick((64, 128, 512)) * MIB,
        tenant_host_bytes=chance.pick((48, 96, 512)) * MIB,
        tenant_quota_bytes=chance.pick((32, 64, 256)) * MIB,
        tenant_quota_leases=chance.pick((4, 8, 64)),
        tenant_quota_sessions=chance.pick((3, 6, 64)),
        lend_to_own_gpu=chance.happens(0.3),
        term_seconds=term,
        restart_grace_seconds=1.5 * term,
        lending_of={gpu: chance.pick(_POLICIES) for gpu in gpus},
        settle_seconds=chance.pick((0.0, 0.0, 1.0, 5.0)),
        newcomer_seconds=chance.pick((0.0, 0.0, 0.5, 2.0)),
        rebalance_seconds=chance.pick((0.0, 0.5, 2.0)),
        host_bytes_per_second=chance.pick((8.0 * GIB, 20.0 * MIB)),
    )
    return Scenario(
        settings=settings,
        gpu_bytes=chance.pick((96, 128, 192)) * MIB,
        keepers=(gpus,) if one_keeper else tuple((gpu,) for gpu in gpus),
        tenants=tuple(TenantName(f"uid-{1000 + n}") for n in range(chance.pick((1, 2, 3)))),
        clients=chance.pick((3, 5, 7)),
        homes=(None, *gpus),
        step_seconds=chance.pick((0.02, 0.06, 0.15)),
    )
