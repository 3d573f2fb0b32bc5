"""Who is there: sessions that open, re-attach, are heard, go silent, end.

The signals and what each of them proves are the table in the broker's design: a closed connection
proves nothing, a dead process ends the session, process and sentinel together prove that nobody can
touch its slabs. What time alone does to a session is `terms`.
"""

from __future__ import annotations

from dataclasses import replace

from aqua_daemon.core import host_room
from aqua_daemon.core.accounts import RETURNABLE
from aqua_daemon.core.errors import (
    InvalidRequest,
    NotPermitted,
    QuotaExceeded,
    UnknownSession,
)
from aqua_daemon.core.events import (
    HostRoomRequested,
    KeepaliveReceived,
    PresenceEnded,
    ProcessEnded,
    SentinelEnded,
    SessionClosed,
    SessionOpened,
    SessionReattached,
)
from aqua_daemon.core.instructions import AnswerHostRoom, AnswerKeepalive, TellLost
from aqua_daemon.core.lifecycle import Move
from aqua_daemon.core.model import (
    DEAD,
    LIVE,
    LOST,
    SUSPECT,
    HostRoom,
    LeaseId,
    LeaseUse,
    RequestId,
    Session,
    SessionId,
    SlabTag,
)
from aqua_daemon.core.reclaiming import abandon
from aqua_daemon.core.returning import forget_if_over, take_back
from aqua_daemon.core.revoking import return_from_proved_gone, revoke_from_dead, send_again
from aqua_daemon.core.sizes import (
    MOST_RETURNING_SESSIONS,
    SPARE_ADMIN_SESSIONS,
    SUSPECT_TERM_FRACTION,
)
from aqua_daemon.core.turn import Turn


def open_session(turn: Turn, event: SessionOpened) -> None:
    """A process has come that was not there before."""
    if event.session_id in turn.ledger.sessions or event.session_id in turn.books.ended:
        msg = f"session id {event.session_id} was used before: make a new one"
        raise InvalidRequest(msg)
    _check_quota(turn, event)
    _enter(turn, event)
    if event.is_admin:
        turn.books.excuse(event.tenant)


def reattach(turn: Turn, event: SessionReattached) -> None:
    """A process is back; it gets its session as the books have it, or as it says in a restart."""
    host_room.check_statement(event.host_room)
    if event.session_id not in turn.ledger.sessions:
        _check_may_come_unknown(turn, event)
        _check_quota(turn, event)
        session = _enter(turn, event)
        turn.books.excuse(session.tenant)  # another daemon let it in
        is_rebuilding = True
    else:
        session = turn.ledger.living_session(event.session_id)
        _check_same_process(session, event)
        is_rebuilding = session.session_id in turn.books.awaited
    turn.books.awaited.discard(event.session_id)
    session = replace(session, home_gpu=event.home_gpu, is_admin=event.is_admin)
    turn.ledger.replace_session(session)
    session = _hear(turn, session, event.request_id, event.uses)
    host_room.take_statement(turn, session, event.host_room, is_rebuilding=is_rebuilding)


def keep_alive(turn: Turn, event: KeepaliveReceived) -> None:
    """A sign of life, with what the client knows of its leases. It revives nothing that ended."""
    session = turn.ledger.living_session(event.session_id)
    host_room.check_statement(event.host_room)
    session = _hear(turn, session, event.request_id, event.uses)
    host_room.take_statement(turn, session, event.host_room)


def request_host_room(turn: Turn, event: HostRoomRequested) -> None:
    """Set what a session may hold in host memory. A late revision has no effect."""
    session = turn.ledger.living_session(event.session_id)
    host_room.check_statement(event.host_room)
    if turn.repeated(session, event.request_id):
        return
    if event.host_room.revision > session.host_room.revision:
        more_bytes = event.host_room.nbytes - session.host_room.nbytes
        if more_bytes > 0:
            host_room.check_room(turn, session.tenant, more_bytes)
        session = host_room.set_room(turn, session, event.host_room)
    turn.answer(
        AnswerHostRoom(
            session_id=event.session_id,
            request_id=event.request_id,
            host_room=session.host_room,
        )
    )


def end_presence(turn: Turn, event: PresenceEnded) -> None:
    """The connection closed. The process may be back: it keeps what it has and gets nothing new."""
    session = turn.ledger.sessions.get(event.session_id)
    for gpu in turn.ledger.gpus.values():
        gpu.quiets.pop(event.session_id, None)  # nobody is there who could end it
    if session is not None and session.state is LIVE:
        turn.ledger.replace_session(replace(session, state=SUSPECT))


def end_process(turn: Turn, event: ProcessEnded) -> None:
    """The process is dead. Whether anybody inherited its mappings, the sentinel will say."""
    session = turn.ledger.sessions.get(event.session_id)
    if session is None or session.state is DEAD:
        return
    session = _end(turn, session)
    revoke_from_dead(turn, session)
    if session.sentinel_ended:
        return_from_proved_gone(turn, session)
    forget_if_over(turn, session.session_id)


def end_sentinel(turn: Turn, event: SentinelEnded) -> None:
    """No process holds the session's sentinel; with the process dead, that is the proof."""
    session = turn.ledger.sessions.get(event.session_id)
    if session is None or session.sentinel_ended:
        return
    session = replace(session, sentinel_ended=True)
    turn.ledger.replace_session(session)
    if session.state is DEAD:
        return_from_proved_gone(turn, session)
        forget_if_over(turn, session.session_id)


def close_session(turn: Turn, event: SessionClosed) -> None:
    """The client left, having unmapped everything: an acknowledgement of all that it held."""
    session = turn.ledger.sessions.get(event.session_id)
    if session is None or session.state is DEAD:
        return
    session = _end(turn, replace(session, sentinel_ended=True))
    for lease_id in tuple(turn.ledger.session_accounts[session.session_id].leases):
        lease = turn.ledger.leases[lease_id]
        if lease.state in RETURNABLE:
            take_back(turn, lease, Move.CLOSED)
    forget_if_over(turn, session.session_id)


def adopt_holder(turn: Turn, tag: SlabTag) -> Session:
    """The session that a keeper says holds a slab, made from the slab's tag when it is not known."""
    known = turn.ledger.sessions.get(tag.session_id)
    if known is not None:
        return known
    is_over = turn.books.is_over(tag)
    session = Session(
        session_id=tag.session_id,
        tenant=tag.tenant,
        process=tag.holder,
        home_gpu=tag.borrower,
        is_admin=False,
        state=DEAD if is_over else SUSPECT,
        heard_at=turn.now,
        host_room=HostRoom(revision=0, nbytes=0),
        sentinel_ended=is_over,
    )
    turn.ledger.open_session(session)
    if not is_over:
        turn.books.awaited.add(session.session_id)
        schedule(turn, session)
    return session


def schedule(turn: Turn, session: Session) -> None:
    """Ask to look at the session when it will next have been silent for too long."""
    term_seconds = turn.books.settings.term_seconds
    is_live = session.state is LIVE
    seconds = term_seconds * SUSPECT_TERM_FRACTION if is_live else term_seconds
    at = session.heard_at + seconds
    turn.ledger.session_accounts[session.session_id].timer_at = at
    turn.books.session_timers.push(at, session.session_id)


def _check_quota(turn: Turn, event: SessionOpened | SessionReattached) -> None:
    spare = SPARE_ADMIN_SESSIONS if event.is_admin else 0
    if isinstance(event, SessionReattached):
        # Another daemon let it in, so it says: though the quota is lower now, though this one has
        # let others in meanwhile. But not without end, for anybody can say so.
        spare += MOST_RETURNING_SESSIONS
    for name, limits in turn.books.limits_over(event.tenant):
        has = turn.ledger.quota_account(name).sessions
        if has >= limits.sessions + spare:
            msg = (
                f"{name} has {has} of its {limits.sessions} sessions, no more are opened: say "
                "goodbye in those that are over, or end the processes that they belong to"
            )
            raise QuotaExceeded(msg)


def _enter(turn: Turn, event: SessionOpened | SessionReattached) -> Session:
    session = Session(
        session_id=event.session_id,
        tenant=event.tenant,
        process=event.process,
        home_gpu=event.home_gpu,
        is_admin=event.is_admin,
        state=LIVE,
        heard_at=turn.now,
        host_room=HostRoom(revision=0, nbytes=0),
    )
    turn.ledger.open_session(session)
    schedule(turn, session)
    return session


def _check_may_come_unknown(turn: Turn, event: SessionReattached) -> None:
    # It may hold host memory alone, or slabs of a keeper that has not been heard.
    books = turn.books
    if event.session_id in books.ended or turn.now >= books.grace_ends_at:
        msg = f"session {event.session_id} is not known here or has ended: open a new one"
        raise UnknownSession(msg)


def _check_same_process(session: Session, event: SessionReattached) -> None:
    if session.process != event.process:
        msg = (
            f"session {session.session_id} belongs to process {session.process.pid} of uid "
            f"{session.process.uid}, not to {event.process.pid} of uid {event.process.uid}: "
            "open a session of your own"
        )
        raise NotPermitted(msg)


def _end(turn: Turn, session: Session) -> Session:
    # Its host memory went with the process, and so did its say about the GPU that it used.
    room = HostRoom(revision=session.host_room.revision, nbytes=0)
    ended = replace(session, state=DEAD, host_room=room)
    turn.ledger.replace_session(ended)
    turn.books.awaited.discard(session.session_id)
    abandon(turn, session.session_id)
    for gpu in turn.ledger.gpus.values():
        gpu.forget(session.session_id)  # the next tick frees what waited for quiet to end
    return ended


def _hear(
    turn: Turn,
    session: Session,
    request_id: RequestId,
    uses: tuple[LeaseUse, ...],
) -> Session:
    session_id = session.session_id
    session = replace(session, state=LIVE, heard_at=turn.now)
    turn.ledger.replace_session(session)
    account = turn.ledger.session_accounts[session_id]
    if account.timer_at is None:
        schedule(turn, session)
    named = {use.lease_id: use for use in uses}
    unknown: list[LeaseId] = []
    lost: list[LeaseId] = []
    if not named.keys() <= account.returnable.keys():  # nearly always all of them are
        foreign = [use.lease_id for use in uses if use.lease_id not in account.returnable]
        for lease_id in foreign:
            named.pop(lease_id, None)
            (lost if _is_lost(turn, session_id, lease_id) else unknown).append(lease_id)
    turn.ledger.name(named, at=turn.now)
    is_known = not unknown or turn.books.has_heard_all
    turn.emit(
        AnswerKeepalive(
            session_id=session_id,
            request_id=request_id,
            ended=tuple(unknown) if is_known else (),
            unheard=() if is_known else tuple(unknown),
        )
    )
    if lost:
        _tell_again(turn, session_id, tuple(lost))
    send_again(turn, session_id)
    return session


def _is_lost(turn: Turn, session_id: SessionId, lease_id: LeaseId) -> bool:
    lease = turn.ledger.leases.get(lease_id)
    if lease is None or lease.session_id != session_id:
        return False
    return lease.state is LOST


def _tell_again(turn: Turn, session_id: SessionId, lease_ids: tuple[LeaseId, ...]) -> None:
    turn.emit(
        TellLost(session_id=session_id, lease_ids=lease_ids, reason="the keeper's memory is gone")
    )
