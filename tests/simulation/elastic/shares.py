"""What is everybody's fair share, by the oracle's own books, and whether everybody has it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from aqua_daemon.core.model import GpuUuid, LeaseState, TenantName, owner_of
from aqua_daemon.core.sizes import GRANT_RESERVE_FACTOR, MIB, reserve_bytes
from tests.simulation.elastic import water
from tests.simulation.elastic.patterns import STEP_BYTES
from tests.simulation.elastic.scenario import ElasticScenario
from tests.simulation.judge import require
from tests.simulation.oracle import Oracle

_NEAR = 0.1  # of a share
_STAYING = (LeaseState.LEASED, LeaseState.QUARANTINED)


class Shares:
    """Judges who holds how much once load is steady."""

    def __init__(self, scenario: ElasticScenario, oracle: Oracle) -> None:
        self._scenario = scenario
        self._oracle = oracle

    def check(self, wanted_bytes: Mapping[TenantName, int]) -> None:
        """Everybody has its share within a tenth, or within one slab."""
        fair = self.fair(wanted_bytes)
        held = {tenant: self._oracle.books.tenant_bytes(tenant) for tenant in fair}
        for tenant, share in fair.items():
            most = max(_NEAR * share, self._scenario.node.settings.largest_slab_bytes) + 1
            require(
                abs(held[tenant] - share) <= most,
                "{} holds {:.1f} MiB, its share is {:.1f}: held {}, fair {}, stuck {}",
                tenant,
                held[tenant] / MIB,
                share / MIB,
                {name: nbytes / MIB for name, nbytes in held.items()},
                {name: round(nbytes / MIB, 1) for name, nbytes in fair.items()},
                {name: nbytes / MIB for name, nbytes in self._stuck_bytes().items()},
            )

    def fair(self, wanted_bytes: Mapping[TenantName, int]) -> dict[TenantName, float]:
        """The share of each: among tenants first, then among the sub-tenants of each."""
        stuck, quarantined = self._stuck_bytes(), self._quarantined_bytes()
        names = dict.fromkeys((*wanted_bytes, *stuck))
        vessels = {
            name: water.Vessel(
                stuck_bytes=stuck.get(name, 0),
                wanted_bytes=wanted_bytes.get(name, 0) + quarantined.get(name, 0),
                weight=self._scenario.weight_of(name) if owner_of(name) != name else 1.0,
            )
            for name in names
        }
        groups: dict[TenantName, dict[TenantName, water.Vessel]] = {}
        for name, vessel in vessels.items():
            groups.setdefault(owner_of(name), {})[name] = vessel
        owners = {
            owner: water.Vessel(
                stuck_bytes=sum(one.stuck_bytes for one in group.values()),
                wanted_bytes=sum(one.wanted_bytes for one in group.values()),
                weight=self._scenario.weight_of(owner),
            )
            for owner, group in groups.items()
        }
        of_owner = water.shares(self.capacity_bytes(), owners)
        found: dict[TenantName, float] = {}
        for owner, group in groups.items():
            found |= water.shares(of_owner[owner], group)
        return found

    def capacity_bytes(self) -> int:
        """What is held, and what more could be granted in whole slabs."""
        return sum(self._capacity_of(gpu) for gpu in self._scenario.node.settings.gpus)

    def _capacity_of(self, gpu: GpuUuid) -> int:
        books = self._oracle.books
        held = sum(tag.nbytes for tag in books.held.values() if tag.lender == gpu)
        is_full_home = self._scenario.is_home_full and gpu in self._scenario.node.homes
        if is_full_home or books.why_no_grant_on(gpu):
            return held
        total = books.reports[gpu].total_bytes
        room = books.free_bytes(gpu) - math.ceil(GRANT_RESERVE_FACTOR * reserve_bytes(total))
        limit = books.limit(gpu)
        if limit is not None:
            room = min(room, limit - held)
        return held + max(0, room) // STEP_BYTES * STEP_BYTES

    def _stuck_bytes(self) -> dict[TenantName, int]:
        """What they hold who have let a deadline pass and not answered since."""
        leases = self._oracle.books.leases.values()
        silent = {one.session_id for one in leases if one.state is LeaseState.QUARANTINED}
        stuck: dict[TenantName, int] = {}
        for lease in leases:
            if lease.session_id in silent and lease.state in _STAYING:
                stuck[lease.tenant] = stuck.get(lease.tenant, 0) + lease.nbytes
        return stuck

    def _quarantined_bytes(self) -> dict[TenantName, int]:
        """What is of no use to its holder: it wants as much beside it."""
        found: dict[TenantName, int] = {}
        for lease in self._oracle.books.leases.values():
            if lease.state is LeaseState.QUARANTINED:
                found[lease.tenant] = found.get(lease.tenant, 0) + lease.nbytes
        return found
