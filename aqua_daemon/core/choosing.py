"""Whose leases are asked back first, and what comes first of what is on its way.

It asks nobody: that is `revoking`, of which this is the choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import attrgetter, itemgetter

from aqua_daemon.core.accounts import GpuAccount, is_coming
from aqua_daemon.core.model import (
    ALLOCATING,
    CACHE,
    LEASED,
    QUARANTINED,
    REVOKING,
    Lease,
    SessionId,
    TenantName,
    owner_of,
)
from aqua_daemon.core.turn import Turn

_Candidate = tuple[float, Lease]  # when it was used last, as far as is known
_RANKS = 4


def cheapest(turn: Turn, account: GpuAccount, nbytes: int) -> list[Lease]:
    """What of a GPU is to be asked back for at least *nbytes*; less if not that much is lent there."""
    return _enough(in_order(turn, turn.ledger.leases_of(account)), nbytes)


def coming_first(turn: Turn, account: GpuAccount, nbytes: int) -> list[Lease]:
    """What is on its way back to a GPU and comes first, for *nbytes*; less if no more is."""
    coming = filter(is_coming, turn.ledger.leases_of(account))
    return _enough(sorted(coming, key=comes_by), nbytes)


def comes_by(lease: Lease) -> float:
    """Until when its holder has time; 0.0 where nobody is waited for."""
    revocation = lease.revocation
    return revocation.deadline if revocation is not None and lease.state is REVOKING else 0.0


def in_order(turn: Turn, leases: Iterable[Lease]) -> Iterator[Lease]:
    """Those that can be asked back, the cheapest first.

    Not made yet, unused, cache, coldest store. What a client has said nothing of is in use. Among
    those: of tenants that hold more than their part, of lower priority, used longest ago. What silent
    sessions hold comes after all that others do: it may not come at all.
    """
    # Only as much is sorted as is taken: most callers stop after a few.
    above = _above_their_part(turn)
    alike: dict[tuple[int, bool, int], list[_Candidate]] = {}
    for tenant, ranks in _ranked(turn, leases).items():
        priority = turn.books.priority_of(tenant)
        for rank, some in enumerate(ranks):
            if some:
                alike.setdefault((rank, tenant not in above, priority), []).extend(some)
    by_use = itemgetter(0)
    for key in sorted(alike):
        for _used_at, equals in groupby(sorted(alike[key], key=by_use), by_use):
            yield from sorted((lease for _, lease in equals), key=attrgetter("lease_id"))


def silent_sessions(turn: Turn) -> set[SessionId]:
    """Those that let a deadline pass: what more they were asked for would be quarantined too."""
    if not any(gpu.bytes_in[QUARANTINED] for gpu in turn.ledger.gpus.values()):
        return set()
    leases = turn.ledger.leases
    return {
        session_id
        for session_id, account in turn.ledger.session_accounts.items()
        if any(leases[one].state is QUARANTINED for one in account.recalled)
    }


def _enough(leases: Iterable[Lease], nbytes: int) -> list[Lease]:
    found: list[Lease] = []
    for lease in leases:
        if nbytes <= 0:
            break
        found.append(lease)
        nbytes -= lease.nbytes
    return found


def _ranked(turn: Turn, leases: Iterable[Lease]) -> dict[TenantName, list[list[_Candidate]]]:
    """Each tenant's candidates by rank, those of silent sessions behind all ranks of others."""
    uses, named_at, silent = turn.ledger.uses, turn.ledger.named_at, silent_sessions(turn)
    ranked: dict[TenantName, list[list[_Candidate]]] = {}
    for lease in leases:
        lease_id = lease.lease_id
        use = uses.get(lease_id)
        if lease.state is LEASED:
            if use is not None and use.used_bytes == 0:
                rank = 1
            else:
                rank = 2 if lease.safety_class is CACHE else 3
            if silent and lease.session_id in silent:
                rank += _RANKS
        elif lease.state is ALLOCATING and lease.revocation is None:
            rank = 0  # silent or not: for what is not made nobody is asked
        else:
            continue
        used_at = named_at[lease_id] if use is None else named_at[lease_id] - use.idle_seconds
        of_tenant = ranked.get(lease.tenant)
        if of_tenant is None:
            of_tenant = ranked[lease.tenant] = [[] for _ in range(2 * _RANKS)]
        of_tenant[rank].append((used_at, lease))
    return ranked


def _above_their_part(turn: Turn) -> set[TenantName]:
    """The tenants that hold more than their weight's part of what is held."""
    held = {name: account.held_bytes for name, account in turn.ledger.owners.items()}
    weights = {name: turn.books.weight_of(name) for name, nbytes in held.items() if nbytes}
    if not weights:
        return set()
    each = sum(held.values()) / sum(weights.values())
    above = {owner for owner, weight in weights.items() if held[owner] > each * weight}
    return {tenant for tenant in turn.ledger.tenants if owner_of(tenant) in above}
