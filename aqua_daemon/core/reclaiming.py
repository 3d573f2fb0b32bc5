"""Producers: how much of their GPU they lend, and taking it back.

A producer is a process that uses the GPU, as the keeper's last report says. A reclaim waits for the
bytes that it set on their way, and for what was on its way there already: asking twice neither asks
for twice as much nor buys a borrower time. Who asks again with less time hastens what is on its way;
each of the two is answered by its own deadline.
"""

from __future__ import annotations

from dataclasses import replace

from aqua_daemon.core.accounts import GpuAccount
from aqua_daemon.core.books import Reclaim
from aqua_daemon.core.choosing import cheapest, comes_by, coming_first
from aqua_daemon.core.errors import InvalidRequest, NotPermitted, UnknownSession
from aqua_daemon.core.events import OfferMade, ReclaimRequested
from aqua_daemon.core.instructions import AnswerDenied, AnswerOffer, AnswerReclaim
from aqua_daemon.core.model import (
    ALLOCATING,
    LEASED,
    QUARANTINED,
    RETURNED,
    REVOKING,
    Lease,
    RevokeReason,
    Session,
    SessionId,
)
from aqua_daemon.core.returning import send_free
from aqua_daemon.core.revoking import revoke
from aqua_daemon.core.sizes import (
    LONGEST_REVOKE_SECONDS,
    REVOKE_GRACE_SECONDS,
    STANDARD_REVOKE_SECONDS,
)
from aqua_daemon.core.turn import Turn


def make_offer(turn: Turn, event: OfferMade) -> None:
    """Set how many bytes of its GPU a producer lends. What is lent beyond it stays lent."""
    session, account = _producer(turn, event)
    if event.nbytes < 0:
        msg = f"an offer of {event.nbytes} bytes: it may not be below 0"
        raise InvalidRequest(msg)
    if turn.repeated(session, event.request_id):
        return
    account.limits[event.session_id] = event.nbytes
    account.offers[event.session_id] = None
    turn.answer(
        AnswerOffer(
            session_id=event.session_id,
            request_id=event.request_id,
            offered_bytes=event.nbytes,
            lent_bytes=_lent_bytes(account),
        )
    )


def start_reclaim(turn: Turn, event: ReclaimRequested) -> None:
    """Set the bytes on their way, and see that they are not lent again."""
    session, account = _producer(turn, event)
    seconds = event.deadline_seconds
    if event.nbytes <= 0:
        msg = f"a reclaim of {event.nbytes} bytes: ask for at least one"
        raise InvalidRequest(msg)
    if seconds is not None and not 0 < seconds <= LONGEST_REVOKE_SECONDS:
        msg = f"a deadline of {seconds:g} s: give between 0 and {LONGEST_REVOKE_SECONDS:g} s"
        raise InvalidRequest(msg)
    if turn.repeated(session, event.request_id):
        return
    coming = coming_first(turn, account, event.nbytes)
    short_bytes = event.nbytes - sum(lease.nbytes for lease in coming)
    coming += cheapest(turn, account, short_bytes)
    revoke(turn, coming, reason=RevokeReason.RECLAIM, seconds=seconds)
    staying_bytes = account.held_bytes - account.coming_bytes
    limit = account.limits.get(event.session_id, staying_bytes)
    account.limits[event.session_id] = min(limit, staying_bytes)
    ends_at = turn.now + seconds if seconds is not None else _latest_deadline(turn, coming)
    reclaim = Reclaim(
        session_id=event.session_id,
        request_id=event.request_id,
        gpu=event.gpu,
        asked_bytes=event.nbytes,
        revoked_bytes=sum(lease.nbytes for lease in coming),
        freed_bytes=0,
        outstanding=frozenset(lease.lease_id for lease in coming),
        started_at=turn.now,
        ends_at=ends_at + REVOKE_GRACE_SECONDS,
    )
    turn.await_answer(event.session_id, event.request_id)
    turn.books.reclaims.append(reclaim)
    turn.books.reclaim_timers.push(reclaim.ends_at, event.request_id)
    for lease in coming:
        if lease.state is RETURNED:  # it waited for the GPU to be quiet no more
            send_free(turn, lease)


def settle(turn: Turn) -> None:
    """Note what has come back for each reclaim, and answer those that are over."""
    struck = {lease.lease_id: lease.nbytes for lease in turn.struck}
    remaining: list[Reclaim] = []
    for reclaim in turn.books.reclaims:
        freed = reclaim.outstanding.intersection(struck)  # looks at what was struck alone
        waiting = reclaim
        if freed:
            waiting = replace(
                reclaim,
                outstanding=reclaim.outstanding - freed,
                freed_bytes=reclaim.freed_bytes + sum(struck[lease_id] for lease_id in freed),
            )
        if not _answered(turn, waiting):
            remaining.append(waiting)
    turn.books.reclaims[:] = remaining


def abandon(turn: Turn, session_id: SessionId) -> None:
    """A producer has ended: nobody waits any more for what it asked back, which comes as it comes."""
    remaining: list[Reclaim] = []
    for reclaim in turn.books.reclaims:
        if reclaim.session_id != session_id:
            remaining.append(reclaim)
            continue
        error = UnknownSession(f"session {session_id} ended during its reclaim")
        turn.answer(AnswerDenied(session_id=session_id, request_id=reclaim.request_id, error=error))
    turn.books.reclaims[:] = remaining


def _answered(turn: Turn, reclaim: Reclaim) -> bool:
    if reclaim.outstanding and turn.now < reclaim.ends_at:
        return False
    late = [turn.ledger.leases[lease_id] for lease_id in reclaim.outstanding]
    turn.answer(
        AnswerReclaim(
            session_id=reclaim.session_id,
            request_id=reclaim.request_id,
            asked_bytes=reclaim.asked_bytes,
            revoked_bytes=reclaim.revoked_bytes,
            freed_bytes=reclaim.freed_bytes,
            quarantined_bytes=sum(lease.nbytes for lease in late if lease.state is QUARANTINED),
            seconds=turn.now - reclaim.started_at,
        )
    )
    return True


def _producer(turn: Turn, event: OfferMade | ReclaimRequested) -> tuple[Session, GpuAccount]:
    session = turn.ledger.living_session(event.session_id)
    account = turn.ledger.gpu_here(event.gpu)
    if session.process.pid not in account.owner_bytes:
        msg = (
            f"process {session.process.pid} does not use {event.gpu}: only a process that holds "
            "memory of a GPU may offer or reclaim it"
        )
        raise NotPermitted(msg)
    return session, account


def _latest_deadline(turn: Turn, leases: list[Lease]) -> float:
    """Of those whose holder still has time; what has come back waits for its keeper alone."""
    latest = max((comes_by(turn.ledger.leases[lease.lease_id]) for lease in leases), default=0.0)
    return latest or turn.now + STANDARD_REVOKE_SECONDS


def _lent_bytes(account: GpuAccount) -> int:
    return account.bytes_in[ALLOCATING] + account.bytes_in[LEASED] + account.bytes_in[REVOKING]
