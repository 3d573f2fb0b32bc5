"""Granting a lease: a promise in the books first, the slab from the keeper, then the answer.

The promise counts from the moment it is made, so two requests can never be met by the same bytes.
"""

from __future__ import annotations

from aqua_daemon.core import balancing, host_room
from aqua_daemon.core.accounts import RETURNABLE
from aqua_daemon.core.errors import (
    InsufficientMemory,
    InvalidRequest,
    QuotaExceeded,
    Restarting,
    SessionSuspect,
    StaleRequest,
    UnknownSession,
)
from aqua_daemon.core.events import LeaseRequested, SlabAllocated, SlabAllocationFailed
from aqua_daemon.core.instructions import AllocateSlab, AnswerDenied, AnswerGranted
from aqua_daemon.core.lifecycle import Move
from aqua_daemon.core.model import (
    ALLOCATING,
    DEAD,
    STORE,
    SUSPECT,
    Lease,
    Session,
    SlabTag,
)
from aqua_daemon.core.placement import Lender, place
from aqua_daemon.core.rating import rate
from aqua_daemon.core.returning import forget_if_over, take_back
from aqua_daemon.core.sizes import MIB, SLAB_GRANULE_BYTES
from aqua_daemon.core.turn import Turn


def request_lease(turn: Turn, event: LeaseRequested) -> None:
    """Promise a session a slab, and have it made."""
    session = turn.ledger.living_session(event.session_id)
    if _is_repeated(turn, session, event):
        return
    _check_standing(turn, session)
    _check_request(turn, event)
    _check_quota(turn, session, event.nbytes)
    if event.safety_class is STORE:
        host_room.check_room(turn, session.tenant, event.nbytes)
    try:
        balancing.check_share(turn, session, event.nbytes)
        placement = place(
            _lenders(turn, session),
            nbytes=event.nbytes,
            lend_to_own_gpu=turn.books.settings.lend_to_own_gpu,
        )
    except InsufficientMemory:
        balancing.note_want(turn, session, max(event.nbytes, event.wanted_bytes))
        raise
    balancing.note_granted(turn, session, event.nbytes)
    lease = Lease(
        lease_id=event.lease_id,
        session_id=event.session_id,
        tenant=session.tenant,
        lender=placement.gpu,
        borrower=session.home_gpu,
        nbytes=event.nbytes,
        safety_class=event.safety_class,
        request_id=event.request_id,
        state=ALLOCATING,
        since=turn.now,
    )
    turn.enter(lease, Move.REQUESTED)
    turn.promise(lease)
    turn.emit(AllocateSlab(tag=_tag(lease, session)))


def slab_allocated(turn: Turn, event: SlabAllocated) -> None:
    """The keeper has made a slab: grant it, unless nobody may have it any more."""
    lease = turn.ledger.leases.get(event.lease_id)
    if lease is None or lease.state is not ALLOCATING:
        return
    turn.ledger.gpus[lease.lender].keeper_slabs[lease.lease_id] = lease.nbytes
    session = turn.ledger.sessions[lease.session_id]
    if session.state is DEAD or lease.revocation is not None:
        drop_unseen(turn, lease)
        return
    granted = turn.move(lease, Move.ALLOCATED)
    turn.books.lease_timers.push(turn.now + turn.books.settings.term_seconds, lease.lease_id)
    turn.emit(
        AnswerGranted(session_id=lease.session_id, request_id=lease.request_id, lease=granted)
    )


def slab_allocation_failed(turn: Turn, event: SlabAllocationFailed) -> None:
    """The keeper could not make a slab."""
    lease = turn.ledger.leases.get(event.lease_id)
    if lease is None or lease.state is not ALLOCATING:
        return
    turn.move(lease, Move.FAILED)
    deny(turn, lease, f"{lease.lender} could not make {lease.nbytes / MIB:g} MiB: {event.message}")
    forget_if_over(turn, lease.session_id)


def drop_unseen(turn: Turn, lease: Lease) -> None:
    """Free a slab that was made for a promise that can't be kept: nobody has seen its handle."""
    take_back(turn, lease, Move.UNWANTED)
    deny(turn, lease, f"{lease.lender} is not lending {lease.nbytes / MIB:g} MiB any more")


def deny(turn: Turn, lease: Lease, message: str) -> None:
    """Tell whoever waits for *lease* that it will not come."""
    session = turn.ledger.sessions[lease.session_id]
    error: InsufficientMemory | UnknownSession
    if session.state is DEAD:
        error = UnknownSession(f"session {lease.session_id} ended before its lease came")
    else:
        error = InsufficientMemory(f"{message}. Ask again with a new request id")
    turn.answer(AnswerDenied(session_id=lease.session_id, request_id=lease.request_id, error=error))


def _is_repeated(turn: Turn, session: Session, event: LeaseRequested) -> bool:
    promised = turn.promised_lease(session, event.request_id)
    if promised is None:
        return False
    if not isinstance(promised, str):
        if isinstance(promised, AnswerDenied):
            turn.emit(promised)
            return True
        msg = f"request id {event.request_id} was used for another call: make a new id for each"
        raise InvalidRequest(msg)
    lease = turn.ledger.leases.get(promised)
    if lease is not None and lease.state is ALLOCATING:
        return True
    if lease is None or lease.state not in RETURNABLE:
        msg = f"request {event.request_id} got lease {promised}, which has ended: use a new id"
        raise StaleRequest(msg)
    turn.emit(AnswerGranted(session_id=lease.session_id, request_id=lease.request_id, lease=lease))
    return True


def _check_standing(turn: Turn, session: Session) -> None:
    if turn.books.is_restarting:
        seconds = max(0.0, turn.books.grace_ends_at - turn.now)
        msg = (
            f"the daemon has just started and waits for {len(turn.books.awaited)} holders of "
            f"leases and for its keepers, {seconds:.1f} s at most: ask again, or use host memory"
        )
        raise Restarting(msg)
    if session.state is SUSPECT:
        msg = (
            f"session {session.session_id} was last heard {turn.now - session.heard_at:.1f} s ago "
            "or lost its presence connection: re-attach"
        )
        raise SessionSuspect(msg)


def _check_request(turn: Turn, event: LeaseRequested) -> None:
    settings = turn.books.settings
    if event.lease_id in turn.ledger.leases or event.lease_id in turn.books.ended:
        msg = f"lease id {event.lease_id} was used before: make a new one"
        raise InvalidRequest(msg)
    smallest, largest = settings.smallest_slab_bytes, settings.largest_slab_bytes
    if not smallest <= event.nbytes <= largest or event.nbytes % SLAB_GRANULE_BYTES:
        msg = (
            f"a slab of {event.nbytes} bytes: ask for a multiple of {SLAB_GRANULE_BYTES} "
            f"between {smallest} and {largest}"
        )
        raise InvalidRequest(msg)


def _check_quota(turn: Turn, session: Session, nbytes: int) -> None:
    for name, limits in turn.books.limits_over(session.tenant):
        account = turn.ledger.quota_account(name)
        if account.held_bytes + nbytes > limits.nbytes:
            msg = (
                f"{name} holds {account.held_bytes / MIB:g} of its {limits.nbytes / MIB:g} MiB, "
                f"{nbytes / MIB:g} MiB more do not fit: release leases, or use host memory"
            )
            raise QuotaExceeded(msg)
        if account.leases >= limits.leases:
            msg = (
                f"{name} holds {account.leases} of its {limits.leases} leases, no more are granted: "
                "release some and ask for larger ones, or use host memory"
            )
            raise QuotaExceeded(msg)


def _lenders(turn: Turn, session: Session) -> list[Lender]:
    leases_on = turn.ledger.session_accounts[session.session_id].leases_on
    accounts, home = turn.ledger.gpus, session.home_gpu
    lenders = [
        Lender(
            gpu=account.gpu,
            lendable_bytes=account.lendable_bytes,
            free_bytes=account.free_bytes,
            trouble=account.no_grants_because or account.waits_for,
            is_home=account.gpu == home,
            leases_of_session=leases_on.get(account.gpu, 0),
        )
        for account in accounts.values()
    ]
    if home is not None:
        rate(turn, lenders, home)
    return lenders


def _tag(lease: Lease, session: Session) -> SlabTag:
    return SlabTag(
        lease_id=lease.lease_id,
        session_id=lease.session_id,
        tenant=lease.tenant,
        safety_class=lease.safety_class,
        lender=lease.lender,
        borrower=lease.borrower,
        nbytes=lease.nbytes,
        holder=session.process,
        request_id=lease.request_id,
    )
