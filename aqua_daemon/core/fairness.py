"""Who should have how much when not everybody can have all: weighted max-min shares. Pure.

The shares are those of water-filling: nobody gets more than it wants, and whoever gets less has, by
its weight, as much as anybody (Bertsekas and Gallager, Data Networks, section 6.5.2). First among
tenants, then among the sub-tenants of each: calling oneself by many names buys nothing.

What a tenant does not give back nobody else can have: it is the least that its share can be, and
the first of it, so that only who keeps more than its share makes those of others smaller.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from aqua_daemon.core.model import TenantName, owner_of

_Key = TypeVar("_Key", bound=Hashable)
_ROUNDING = 0.01  # bytes by which a sum of floats may miss a whole slab


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """One tenant or sub-tenant that has, or wants, leases."""

    tenant: TenantName
    held_bytes: int
    wanted_bytes: int = 0  # beyond what it holds
    stuck_bytes: int = 0  # of what it holds, with those who do not answer
    leaving_bytes: int = 0  # of what it holds, on its way back
    weight: float = 1.0  # among the sub-tenants of its tenant
    owner_weight: float = 1.0  # of its tenant, among tenants

    @property
    def demand_bytes(self) -> int:
        """What it would have if there were enough."""
        return self.held_bytes + self.wanted_bytes


def fair_shares(capacity_bytes: float, parties: Iterable[Party]) -> dict[TenantName, float]:
    """The share of each party, in bytes; together they are at most *capacity_bytes*."""
    of_owner: dict[TenantName, list[Party]] = {}
    for party in parties:
        of_owner.setdefault(owner_of(party.tenant), []).append(party)
    of_tenants = max_min(
        capacity_bytes,
        {owner: sum(one.demand_bytes for one in group) for owner, group in of_owner.items()},
        {owner: group[0].owner_weight for owner, group in of_owner.items()},
        {owner: sum(one.stuck_bytes for one in group) for owner, group in of_owner.items()},
    )
    shares: dict[TenantName, float] = {}
    for owner, group in of_owner.items():
        shares |= max_min(
            of_tenants[owner],
            {party.tenant: party.demand_bytes for party in group},
            {party.tenant: party.weight for party in group},
            {party.tenant: party.stuck_bytes for party in group},
        )
    return shares


def in_whole_slabs(
    shares: Mapping[TenantName, float], parties: Iterable[Party], slab_bytes: int
) -> dict[TenantName, int]:
    """*shares* as slabs can make them: each less than one slab from what it was, no more in all.

    What is left when each is rounded down goes a slab each, to those who hold it already, so that a
    share that breathes moves nothing, then to those who miss most (the largest remainders).
    """
    found = {
        tenant: int(share + _ROUNDING) // slab_bytes * slab_bytes
        for tenant, share in shares.items()
    }
    left = (int(sum(shares.values()) + _ROUNDING) - sum(found.values())) // slab_bytes
    held = {party.tenant: party.held_bytes for party in parties}
    first = sorted(
        (tenant for tenant in found if shares[tenant] - found[tenant] > _ROUNDING),
        key=lambda tenant: (held[tenant] <= found[tenant], found[tenant] - shares[tenant]),
    )
    return found | {tenant: found[tenant] + slab_bytes for tenant in first[:left]}


def max_min(
    capacity: float,
    demands: Mapping[_Key, float],
    weights: Mapping[_Key, float],
    floors: Mapping[_Key, float] | None = None,
) -> dict[_Key, float]:
    """What each gets of *capacity*: its floor at least. Weights are above 0."""
    shares: dict[_Key, float] = {}
    least = floors or {}
    # Each that stands above the water lowers it for the others, which may leave more above it.
    drinking = dict(demands)
    while True:
        poured = _poured(capacity - sum(shares.values()), drinking, weights)
        above = {key: least[key] for key in poured if poured[key] < least.get(key, 0)}
        if not above:
            return shares | poured
        shares |= above
        drinking = {key: demand for key, demand in drinking.items() if key not in above}


def _poured(
    capacity: float, demands: Mapping[_Key, float], weights: Mapping[_Key, float]
) -> dict[_Key, float]:
    shares: dict[_Key, float] = {}
    thirstiest_last = sorted(demands, key=lambda key: demands[key] / weights[key])
    left, weight_left = max(0.0, capacity), sum(weights[key] for key in demands)
    for key in thirstiest_last:
        # The level that the water reaches if all that are left drink alike.
        share = min(demands[key], left * weights[key] / weight_left)
        shares[key] = share
        left -= share
        weight_left -= weights[key]
    return shares
