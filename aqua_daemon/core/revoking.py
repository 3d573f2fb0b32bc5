"""Asking for leases back, and what happens when they do not come.

Covers the deadlines, the reserve, and quarantine. Which leases go first is `choosing`. Reclaims by
producers are `reclaiming`, terms are `terms`; both revoke through here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from aqua_daemon.core.accounts import GpuAccount
from aqua_daemon.core.choosing import cheapest, comes_by, coming_first
from aqua_daemon.core.instructions import SendRevoke
from aqua_daemon.core.lifecycle import Move
from aqua_daemon.core.model import (
    ALLOCATING,
    CACHE,
    DEAD,
    LEASED,
    REVOKING,
    STORE,
    GpuUuid,
    Lease,
    Revocation,
    RevokeReason,
    SafetyClass,
    Session,
    SessionId,
)
from aqua_daemon.core.returning import take_back
from aqua_daemon.core.sizes import (
    CACHE_REVOKE_SECONDS,
    DEAD_REVOKE_SECONDS,
    LONGEST_REVOKE_SECONDS,
    STANDARD_REVOKE_SECONDS,
)
from aqua_daemon.core.turn import Turn

_CAN_COME = frozenset({ALLOCATING, LEASED, REVOKING})


def keep_reserve(turn: Turn, account: GpuAccount) -> None:
    """Revoke until the GPU's reserve will be whole, counting what is on its way back.

    What was given much more time, by who was in no need, is hastened.
    """
    if account.total_bytes is None or account.is_quiet:
        return
    short_bytes = account.reserve_bytes - account.free_bytes - account.coming_bytes
    if short_bytes > 0:
        revoke(turn, cheapest(turn, account, short_bytes), reason=RevokeReason.RESERVE)
    if short_bytes > -account.coming_bytes:
        coming = coming_first(turn, account, short_bytes + account.coming_bytes)
        revoke(turn, _much_too_late(turn, coming), reason=RevokeReason.RESERVE)


def revoke(
    turn: Turn,
    leases: Iterable[Lease],
    *,
    reason: RevokeReason,
    seconds: float | None = None,
    least_seconds: float = 0.0,
) -> None:
    """Ask for leases back, with the deadlines of `revocations`; those not made yet are never granted.

    Whose revoke under way gets an earlier deadline is told again. Others are left alone.
    """
    asked = [lease for lease in leases if lease.state in _CAN_COME]
    if not asked:
        return  # as at nearly every tick
    found = revocations(turn, asked, reason=reason, seconds=seconds, least_seconds=least_seconds)
    told: list[Lease] = []
    for lease, revocation in zip(asked, found, strict=True):
        if lease.state is LEASED:
            told.append(turn.move(lease, Move.REVOKED, revocation=revocation))
        elif revocation is lease.revocation:
            continue
        elif lease.state is REVOKING:
            told.append(turn.revise(lease, revocation))
        else:
            turn.revise(lease, revocation)
            continue
        turn.books.lease_timers.push(revocation.deadline, lease.lease_id)
    send_revokes(turn, told)


def revocations(
    turn: Turn,
    leases: Sequence[Lease],
    *,
    reason: RevokeReason,
    seconds: float | None,
    least_seconds: float = 0.0,
) -> list[Revocation]:
    """What revoking *leases* now would say of each. It changes nothing.

    *seconds* None: the standard deadline of each one's class. It is later where more is being
    evacuated than the way to host memory, which all of them share, can carry by then. What is under
    way already gets no more time by it.
    """
    carried_seconds = _carried_seconds(turn, leases)
    of_cache, of_store = (
        _revocation(turn, of_class, reason, seconds, carried_seconds, least_seconds)
        for of_class in (CACHE, STORE)
    )
    wanted = (of_cache if one.safety_class is CACHE else of_store for one in leases)
    return [
        one if lease.revocation is None else _sooner(lease.revocation, one)
        for lease, one in zip(leases, wanted, strict=True)
    ]


def send_revokes(turn: Turn, leases: Iterable[Lease]) -> None:
    """Tell holders what is wanted back: one message for what has one reason and deadline."""
    grouped: defaultdict[tuple[SessionId, GpuUuid, RevokeReason, float], list[Lease]]
    grouped = defaultdict(list)
    for lease in leases:
        revocation = lease.revocation
        if revocation is not None:
            key = (lease.session_id, lease.lender, revocation.reason, revocation.deadline)
            grouped[key].append(lease)
    for (session_id, gpu, reason, deadline), group in grouped.items():
        turn.emit(
            SendRevoke(
                session_id=session_id,
                gpu=gpu,
                nbytes=sum(lease.nbytes for lease in group),
                reason=reason,
                deadline=deadline,
                lease_ids=tuple(lease.lease_id for lease in group),
            )
        )


def send_again(turn: Turn, session_id: SessionId) -> None:
    """Tell a session once more what is wanted back from it."""
    recalled = turn.ledger.session_accounts[session_id].recalled
    if recalled:
        send_revokes(turn, [turn.ledger.leases[lease_id] for lease_id in recalled])


def revoke_from_dead(turn: Turn, session: Session) -> None:
    """All that a dead process held is on its way back, or with whoever inherited it."""
    deadline = turn.now + DEAD_REVOKE_SECONDS
    for lease_id in tuple(turn.ledger.session_accounts[session.session_id].leases):
        lease = turn.ledger.leases[lease_id]
        started_at = turn.now
        if lease.state is REVOKING and lease.revocation is not None:
            deadline_of_lease = min(deadline, lease.revocation.deadline)
            started_at = lease.revocation.started_at
        else:
            deadline_of_lease = deadline
        revocation = Revocation(
            reason=RevokeReason.DEAD, started_at=started_at, deadline=deadline_of_lease
        )
        if lease.state is LEASED:
            turn.move(lease, Move.REVOKED, revocation=revocation)
        elif lease.state is REVOKING:
            turn.revise(lease, revocation)
        else:
            continue
        turn.books.lease_timers.push(deadline_of_lease, lease_id)


def return_from_proved_gone(turn: Turn, session: Session) -> None:
    """Nobody can touch any more what the session held."""
    for lease_id in tuple(turn.ledger.session_accounts[session.session_id].recalled):
        take_back(turn, turn.ledger.leases[lease_id], Move.PROVED_GONE)


def quarantine_if_overdue(turn: Turn, lease: Lease) -> None:
    """A revoke ends at its deadline, one way or the other."""
    if lease.state is not REVOKING or lease.revocation is None:
        return
    if lease.revocation.deadline <= turn.now:
        session = turn.ledger.sessions[lease.session_id]
        is_dead = session.state is DEAD
        turn.move(lease, Move.INHERITED if is_dead else Move.OVERDUE)


def _revocation(
    turn: Turn,
    safety_class: SafetyClass,
    reason: RevokeReason,
    seconds: float | None,
    carried_seconds: float = 0.0,
    least_seconds: float = 0.0,
) -> Revocation:
    if seconds is None and safety_class is CACHE:
        seconds = CACHE_REVOKE_SECONDS
    elif seconds is None:
        seconds = min(max(STANDARD_REVOKE_SECONDS, carried_seconds), LONGEST_REVOKE_SECONDS)
    deadline = turn.now + max(seconds, least_seconds)
    return Revocation(reason=reason, started_at=turn.now, deadline=deadline)


def _sooner(under_way: Revocation, wanted: Revocation) -> Revocation:
    """A revoke under way that is asked for again: who asked first is named, who is in need is met."""
    if under_way.reason is RevokeReason.DEAD or under_way.deadline <= wanted.deadline:
        return under_way  # of the dead, nobody is there to hurry
    return replace(under_way, deadline=wanted.deadline)


def _much_too_late(turn: Turn, coming: Sequence[Lease]) -> list[Lease]:
    """Of what is under way, that which a revoke begun now would bring much sooner.

    Not all that it would bring sooner: as a storm abates that is so at each tick.
    """
    found = revocations(turn, coming, reason=RevokeReason.RESERVE, seconds=None)
    return [
        lease
        for lease, wanted in zip(coming, found, strict=True)
        if comes_by(lease) > wanted.deadline + STANDARD_REVOKE_SECONDS
    ]


def _carried_seconds(turn: Turn, leases: Iterable[Lease]) -> float:
    """How long all that is to be evacuated on the node takes, with *leases*, if it goes to the host."""
    under_way = sum(account.bytes_in[REVOKING] for account in turn.ledger.gpus.values())
    more = sum(one.nbytes for one in leases if one.state is LEASED and one.safety_class is STORE)
    return (under_way + more) / turn.books.settings.host_bytes_per_second
