"""How slabs come back: given back by their holder, freed by the keeper, told to be lost.

What counts as returned is a holder's word or the proof that it is gone; what counts as free is the
keeper's word. How leases are asked back is `revoking`, who is gone is `sessions`.
"""

from __future__ import annotations

from aqua_daemon.core import host_room
from aqua_daemon.core.accounts import RETURNABLE
from aqua_daemon.core.events import LeasesReleased, LossTold, RevokeAcknowledged, SlabFreed
from aqua_daemon.core.instructions import AnswerReturned, ForgetSession, FreeSlab, TellLost
from aqua_daemon.core.lifecycle import Move
from aqua_daemon.core.model import (
    DEAD,
    FREEING,
    LOST,
    Lease,
    LeaseId,
    RevokeReason,
    SessionId,
)
from aqua_daemon.core.turn import Turn

# An owner waits for what was asked back for it.
_OWED = frozenset({RevokeReason.RECLAIM, RevokeReason.OWNER})


def take_returns(turn: Turn, event: LeasesReleased | RevokeAcknowledged) -> None:
    """A holder gave slabs back. Ids that are not its own leases have no effect.

    The answer to a revoke may be another of the session's leases: it counts as well.
    """
    session = turn.ledger.living_session(event.session_id)
    host_room.check_statement(event.host_room)
    if turn.repeated(session, event.request_id):
        return
    account = turn.ledger.session_accounts[event.session_id]
    backed_bytes = account.backed_bytes
    move = Move.RELEASED if isinstance(event, LeasesReleased) else Move.ACKNOWLEDGED
    returned: list[LeaseId] = []
    unknown: list[LeaseId] = []
    for lease_id in dict.fromkeys(event.lease_ids):
        lease = turn.ledger.leases.get(lease_id)
        if lease is None or lease.session_id != event.session_id or lease.state not in RETURNABLE:
            unknown.append(lease_id)
            continue
        take_back(turn, lease, move)
        returned.append(lease_id)
    covered_bytes = backed_bytes - account.backed_bytes
    host_room.take_statement(turn, session, event.host_room, covered_bytes=covered_bytes)
    turn.answer(
        AnswerReturned(
            session_id=event.session_id,
            request_id=event.request_id,
            returned=tuple(returned),
            unknown=tuple(unknown),
        )
    )


def take_back(turn: Turn, lease: Lease, move: Move) -> None:
    """A slab is nobody's any more: have it freed."""
    send_free(turn, turn.move(lease, move))


def send_free(turn: Turn, lease: Lease) -> None:
    """Have a returned slab freed, once its keeper can be told and the GPU is not to be left alone."""
    account = turn.ledger.gpus[lease.lender]
    if account.is_quiet and not _is_owed(turn, lease):
        account.has_postponed = True
    elif account.has_keeper:
        turn.move(lease, Move.FREE_ASKED)
        turn.emit(FreeSlab(gpu=lease.lender, lease_id=lease.lease_id))


def slab_freed(turn: Turn, event: SlabFreed) -> None:
    """The keeper freed the bytes. An answer that comes twice has no effect.

    What the driver did not get back all the same, because somebody still maps it, is used by others
    from here on: the reports that follow say so too, and when it has come back.
    """
    lease = turn.ledger.leases.get(event.lease_id)
    if lease is None or lease.state is not FREEING:
        return
    account = turn.ledger.gpus[lease.lender]
    account.keeper_slabs.pop(lease.lease_id, None)
    account.others_bytes += event.unreturned_bytes
    turn.move(lease, Move.FREED)
    forget_if_over(turn, lease.session_id)


def lose(turn: Turn, leases: list[Lease], move: Move, reason: str) -> None:
    """Slabs whose bytes no longer exist; their holders are told."""
    told: dict[SessionId, list[LeaseId]] = {}
    for lease in leases:
        turn.ledger.gpus[lease.lender].keeper_slabs.pop(lease.lease_id, None)
        if turn.move(lease, move).state is LOST:
            told.setdefault(lease.session_id, []).append(lease.lease_id)
    for session_id, lease_ids in told.items():
        turn.emit(TellLost(session_id=session_id, lease_ids=tuple(lease_ids), reason=reason))
    for session_id in dict.fromkeys(lease.session_id for lease in leases):
        forget_if_over(turn, session_id)


def loss_told(turn: Turn, event: LossTold) -> None:
    """A holder knows what it has lost."""
    for lease_id in event.lease_ids:
        lease = turn.ledger.leases.get(lease_id)
        if lease is not None and lease.state is LOST:
            turn.move(lease, Move.TOLD)
            forget_if_over(turn, lease.session_id)


def forget_if_over(turn: Turn, session_id: SessionId) -> None:
    """Strike a session that has ended and holds nothing."""
    session = turn.ledger.sessions.get(session_id)
    if session is None or session.state is not DEAD:
        return
    if turn.ledger.session_accounts[session_id].leases:
        return
    turn.ledger.close_session(session_id)
    turn.books.remember_ended(session_id)
    if session.sentinel_ended:
        turn.books.remember_over(session)
    turn.emit(ForgetSession(session_id=session_id))


def _is_owed(turn: Turn, lease: Lease) -> bool:
    """Whether an owner waits for the bytes: quiet or not, they are its own."""
    if turn.ledger.gpus[lease.lender].is_taken_back:
        return True
    if lease.revocation is not None and lease.revocation.reason in _OWED:
        return True
    return any(lease.lease_id in reclaim.outstanding for reclaim in turn.books.reclaims)
