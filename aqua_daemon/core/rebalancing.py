"""Which tenants should give back how much, and for whom: a pure policy from figures to suggestions.

It suggests only what leaves nobody below its share and brings nobody above it, so that a suggestion
that was followed is never followed by its opposite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aqua_daemon.core.fairness import Party
from aqua_daemon.core.model import TenantName
from aqua_daemon.core.sizes import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """Ask one tenant for bytes back, for others."""

    tenant: TenantName
    nbytes: int  # at most: whole slabs that fit are to be chosen
    for_tenant: TenantName  # the one that lacks most
    reason: str


def recalls(
    parties: Sequence[Party],
    shares: Mapping[TenantName, float],
    *,
    smallest_bytes: int,
    coming_bytes: int,
) -> list[Recall]:
    """What to ask back so that each who wants more comes to its share.

    Args:
        parties: everybody who has or wants something.
        shares: the fair share of each, in bytes.
        smallest_bytes: of a slab; who lacks less than that has its share.
        coming_bytes: what can be granted already, or is on its way back: it serves first.
    """
    lacks = {party.tenant: lack(party, shares) for party in parties}
    lacking = sorted(
        (tenant for tenant, lack in lacks.items() if lack >= smallest_bytes),
        key=lambda tenant: lacks[tenant],
    )
    needed = sum(lacks[tenant] for tenant in lacking) - coming_bytes
    found: list[Recall] = []
    for party in sorted(parties, key=lambda one: -_excess(one, shares)):
        excess = int(_excess(party, shares))
        if needed < smallest_bytes or excess < smallest_bytes:
            break
        nbytes = min(excess, int(needed))
        found.append(_recall(party, nbytes, lacking[-1], shares))
        needed -= nbytes
    return found


def lack(party: Party, shares: Mapping[TenantName, float]) -> int:
    """How many of the bytes that it wants would still be within its share; 0 if not known."""
    share = shares.get(party.tenant, 0.0)
    return int(min(party.wanted_bytes, max(0.0, share - party.held_bytes)))


def _excess(party: Party, shares: Mapping[TenantName, float]) -> float:
    # What is on its way back already is not asked for again.
    return party.held_bytes - party.leaving_bytes - shares[party.tenant]


def _recall(
    party: Party, nbytes: int, for_tenant: TenantName, shares: Mapping[TenantName, float]
) -> Recall:
    reason = (
        f"{party.tenant} holds {party.held_bytes / MIB:.0f} MiB, its fair share is "
        f"{shares[party.tenant] / MIB:.0f} MiB; {for_tenant} has less than its "
        f"{shares[for_tenant] / MIB:.0f} MiB and wants more"
    )
    return Recall(tenant=party.tenant, nbytes=nbytes, for_tenant=for_tenant, reason=reason)
