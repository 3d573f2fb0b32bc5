"""A holder answers a revoke with other leases of its own: these come back, the revoked ones stay.

The broker proposes leases by what their holder said last, which is old; the holder knows better what
is empty by now. The owner gets no byte less and none later: what is offered is on the same GPU, has
at least as many bytes, and is revoked with the very deadline of what it stands for. It is taken in
the first part of a revoke's time only (`EXCHANGE_FRACTION`), and all of it or nothing.

Where just these leases are wanted (their holder lapsed, their books are doubtful) or all that a GPU
lends (a drain, a newcomer), no others will do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from aqua_daemon.core.errors import (
    ExchangeGone,
    ExchangeTooLate,
    ExchangeTooSmall,
    InvalidRequest,
    NotExchangeable,
    SessionSuspect,
)
from aqua_daemon.core.events import ExchangeOffered
from aqua_daemon.core.instructions import AnswerExchange
from aqua_daemon.core.lifecycle import Move
from aqua_daemon.core.model import (
    LEASED,
    REVOKING,
    SUSPECT,
    Lease,
    LeaseId,
    LeaseState,
    Revocation,
    RevokeReason,
    SessionId,
)
from aqua_daemon.core.revoking import send_revokes
from aqua_daemon.core.sizes import EXCHANGE_FRACTION, REST_SECONDS
from aqua_daemon.core.turn import Turn

# What is wanted for these is so many bytes of a GPU, whichever they are.
EXCHANGEABLE = frozenset({RevokeReason.RECLAIM, RevokeReason.RESERVE, RevokeReason.REBALANCE})


def exchange(turn: Turn, event: ExchangeOffered) -> None:
    """Revoke what is offered instead of what is to be spared, or refuse and change nothing.

    Raises:
        SessionSuspect: the session was not heard in time.
        InvalidRequest: nothing is named, something twice, or leases of several GPUs or revokes.
        ExchangeRefused: by its kind, why what was asked back has to come.
    """
    session = turn.ledger.living_session(event.session_id)
    if turn.repeated(session, event.request_id):
        return
    if session.state is SUSPECT:
        raise SessionSuspect(f"session {session.session_id} was not heard in time: re-attach")
    _check_names(event)
    spared = _held(turn, event.session_id, event.spared, REVOKING)
    offered = _held(turn, event.session_id, event.offered, LEASED)
    revocation = _common_revoke(spared, offered)
    _check_wanted(turn, spared, offered, revocation)
    _check_time(turn, revocation)
    revoked = [turn.move(lease, Move.EXCHANGED, revocation=revocation) for lease in offered]
    for lease in revoked:
        turn.books.lease_timers.push(revocation.deadline, lease.lease_id)
    for lease in spared:  # looked at again when its revoke would have ended: then its term counts
        turn.move(lease, Move.SPARED)
    _owe_instead(turn, spared, revoked)
    send_revokes(turn, revoked)  # also where the answer is lost they are to come
    turn.answer(
        AnswerExchange(
            session_id=event.session_id,
            request_id=event.request_id,
            gpu=spared[0].lender,
            spared=event.spared,
            revoked=event.offered,
        )
    )


def _check_names(event: ExchangeOffered) -> None:
    named = (*event.spared, *event.offered)
    if not (event.spared and event.offered) or len(set(named)) < len(named):
        msg = "name leases to be spared and others to be revoked instead, each of them once"
        raise InvalidRequest(msg)


def _held(
    turn: Turn, session_id: SessionId, lease_ids: Iterable[LeaseId], state: LeaseState
) -> list[Lease]:
    """The session's leases of these ids, all of them in *state*."""
    found: list[Lease] = []
    for lease_id in lease_ids:
        lease = turn.ledger.leases.get(lease_id)
        if lease is None or lease.session_id != session_id or lease.state is not state:
            is_mine = lease is not None and lease.session_id == session_id
            now = lease.state.value if lease is not None and is_mine else "no lease of this session"
            raise ExchangeGone(f"{lease_id} is {now}, not {state.value}: evacuate what was revoked")
        found.append(lease)
    return found


def _common_revoke(spared: list[Lease], offered: list[Lease]) -> Revocation:
    revocation = spared[0].revocation
    is_one = all(lease.revocation == revocation for lease in spared)
    if revocation is None or not is_one or len({one.lender for one in (*spared, *offered)}) > 1:
        raise InvalidRequest("an exchange is of leases of one GPU, and answers one revoke")
    return revocation


def _check_wanted(
    turn: Turn, spared: list[Lease], offered: list[Lease], revocation: Revocation
) -> None:
    account = turn.ledger.gpus[spared[0].lender]
    reason = revocation.reason
    if reason not in EXCHANGEABLE or account.is_drained or account.newcomer is not None:
        msg = f"just what was asked for on {account.gpu} has to come ({reason.value}): evacuate it"
        raise NotExchangeable(msg)
    is_by_choice = reason is RevokeReason.REBALANCE
    if is_by_choice and any(turn.now - lease.since < REST_SECONDS for lease in offered):
        msg = f"by choice no lease moves within {REST_SECONDS:g} s: evacuate what was revoked"
        raise NotExchangeable(msg)
    wanted_bytes = sum(lease.nbytes for lease in spared)
    offered_bytes = sum(lease.nbytes for lease in offered)
    if offered_bytes < wanted_bytes:
        msg = f"{offered_bytes} bytes are offered for {wanted_bytes}: offer at least as many"
        raise ExchangeTooSmall(msg)


def _check_time(turn: Turn, revocation: Revocation) -> None:
    seconds = revocation.deadline - revocation.started_at
    late_seconds = turn.now - (revocation.started_at + EXCHANGE_FRACTION * seconds)
    if late_seconds > 0:
        msg = (
            f"of {seconds:g} s more than {EXCHANGE_FRACTION:.0%} have passed, by "
            f"{late_seconds:.3f} s: evacuate what was revoked"
        )
        raise ExchangeTooLate(msg)


def _owe_instead(turn: Turn, spared: list[Lease], revoked: list[Lease]) -> None:
    """Who waits for what is spared waits for the others: for no byte less."""
    coming = {lease.lease_id: lease.nbytes for lease in revoked}
    staying = {lease.lease_id: lease.nbytes for lease in spared}
    for index, reclaim in enumerate(turn.books.reclaims):
        owed = reclaim.outstanding.intersection(staying)
        if not owed:
            continue
        fresh = coming.keys() - reclaim.outstanding
        more_bytes = sum(coming[one] for one in fresh) - sum(staying[one] for one in owed)
        turn.books.reclaims[index] = replace(
            reclaim,
            outstanding=(reclaim.outstanding - owed) | fresh,
            revoked_bytes=reclaim.revoked_bytes + more_bytes,
        )
