"""The presence socket: who a client is, whether it is there, and what it is to be told.

Covers greeting new sessions and those that re-attach, keepalives, pushes, and the tokens that the
API's calls carry. Does not cover what one connection may send (presence_link), what a frame looks
like (wire.frames), who the kernel says somebody is (processes), nor the proofs of a client's death
(holders).

A token belongs to one connection and ends with it. A session has one connection: a re-attach
displaces the one before it. Everything here happens in callbacks of the event loop and never
waits, so no two greetings can mix.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable

from aqua_daemon import __version__
from aqua_daemon.adapters.accepting import Acceptor
from aqua_daemon.adapters.admins import Admins, admins_of
from aqua_daemon.adapters.client_tally import ClientTally
from aqua_daemon.adapters.greeting import (
    Identify,
    Roll,
    check_hello,
    identified,
    introduction,
    new_request_id,
    new_sentinel,
    new_session_id,
    new_token,
)
from aqua_daemon.adapters.holders import Holders
from aqua_daemon.adapters.presence_link import PresenceLimits, PresenceLink, refuse_connection
from aqua_daemon.adapters.processes import peer_of, peer_uid
from aqua_daemon.adapters.statuses import TooMany
from aqua_daemon.adapters.wire import frames
from aqua_daemon.core.errors import BrokerBug, BrokerError, InvalidRequest, NotPermitted
from aqua_daemon.core.events import (
    KeepaliveReceived,
    LossTold,
    PresenceEnded,
    SessionClosed,
    SessionOpened,
    SessionReattached,
)
from aqua_daemon.core.instructions import AnswerKeepalive, SendRevoke, TellLost
from aqua_daemon.core.model import BrokerSettings, LeaseId, SessionId
from aqua_daemon.ports import Clock, Keepers
from aqua_daemon.service import BrokerService

TakeCall = Callable[[PresenceLink, SessionId, frames.Call], None]

logger = logging.getLogger("aqua.presence")


class PresenceServer:
    """Implements `ports.Sessions` over the presence links."""

    def __init__(
        self,
        listener: socket.socket,
        *,
        service: BrokerService,
        holders: Holders,
        keepers: Keepers,
        settings: BrokerSettings,
        clock: Clock,
        limits: PresenceLimits | None = None,
        admins: Admins | None = None,
        identify: Identify = peer_of,
        clients: ClientTally | None = None,
    ) -> None:
        """Owns *listener*, which is bound and listens; call `start` on the running loop."""
        self._acceptor = Acceptor(listener, self._admit)
        self._service = service
        self._holders = holders
        self._keepers = keepers
        self._settings = settings
        self._clock = clock
        self.limits = limits or PresenceLimits()
        self._admins = admins or admins_of("")
        self._identify = identify
        self._clients = clients or ClientTally()
        self._all: set[PresenceLink] = set()
        self._per_uid: Counter[int] = Counter()
        self._links: dict[SessionId, PresenceLink] = {}
        self._tokens: dict[bytes, PresenceLink] = {}
        self.roll = Roll(most_sessions=self.limits.sessions_per_process)
        self._take_call: TakeCall | None = None
        self._is_closed = False

    def take_calls(self, take: TakeCall) -> None:
        """Say who takes calls that come as frames; they need the links, hence not in `__init__`."""
        self._take_call = take

    def start(self) -> None:
        """Begin to accept connections."""
        self._acceptor.start()

    def close(self) -> None:
        """End every connection, telling the broker of none. May be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self._acceptor.close()
        for link in list(self._all):
            self._drop(link)

    def announce_restart(self) -> None:
        """Tell every client that this daemon leaves and another comes; accept nobody new."""
        self._acceptor.stop()
        for link in self._links.values():
            link.push(frames.restarting())

    def session_of(self, token: bytes) -> SessionId | None:
        """Whose live connection this token belongs to."""
        link = self._tokens.get(token)
        return link.session_id if link else None

    def caller_of(self, session_id: SessionId) -> tuple[int, int]:
        """The process and the user of an attached session; zeros if it is not attached."""
        link = self._links.get(session_id)
        return (link.pid, link.uid) if link else (0, 0)

    def send_descriptor(self, session_id: SessionId, lease_id: LeaseId, descriptor: int) -> bool:
        """Send a slab's memory, of which the caller stays the owner; False: it can't be sent."""
        link = self._links.get(session_id)
        payload = frames.slab_descriptor(lease_id)
        return link is not None and link.push_descriptor(payload, descriptor)

    def send_revoke(self, order: SendRevoke, *, seconds: float) -> None:
        """Push a revoke. A session that is not attached gets it when it is."""
        link = self._links.get(order.session_id)
        if link is not None:
            link.push(frames.revoke(order, seconds=seconds))

    def tell_lost(self, order: TellLost) -> None:
        """Push a loss. A session that is not attached learns it when it names the lease."""
        link = self._links.get(order.session_id)
        if link is not None:
            link.push(frames.leases_lost(order))
        self._service.submit(LossTold(lease_ids=order.lease_ids))

    def forget(self, session_id: SessionId) -> None:
        """Close the session's connection and the proofs of its holder."""
        link = self._links.pop(session_id, None)
        if link is not None:
            self._drop(link)
        self._holders.forget(session_id)
        self._clients.forget(session_id)
        self.roll.strike(session_id)

    def _admit(self, connection: socket.socket) -> None:
        uid = peer_uid(connection)
        has = self._per_uid[uid]
        if has >= self.limits.connections_per_uid:
            msg = f"uid {uid} has {has} presence connections, the most it may have: close some"
            refuse_connection(connection, TooMany(msg))
            return
        if len(self._all) >= self.limits.connections:
            msg = f"the node has {len(self._all)} presence connections, its limit; try again later"
            refuse_connection(connection, TooMany(msg))
            return
        link = PresenceLink(
            connection,
            uid=uid,
            clock=self._clock,
            limits=self.limits,
            on_frame=self._frame_came,
            on_end=self._link_ended,
        )
        self._all.add(link)
        self._per_uid[uid] += 1

    def _frame_came(self, link: PresenceLink, payload: bytes) -> None:
        try:
            self._serve(link, frames.client_frame(payload))
        except BrokerError as error:
            link.refuse(error)
            if link.session_id is None:
                self._drop(link)

    def _serve(self, link: PresenceLink, frame: frames.ClientFrame) -> None:
        match frame:
            case frames.Hello():
                if link.session_id is not None:
                    msg = "this connection said hello before: to re-attach open another"
                    raise InvalidRequest(msg)
                self._greet(link, frame)
            case _ if link.session_id is None:
                raise InvalidRequest("say hello first: this connection has no session yet")
            case frames.Call():
                if self._take_call is None:
                    raise BrokerBug("nobody takes calls here: call over gRPC")
                self._take_call(link, link.session_id, frame)
            case frames.Keepalive():
                self._keep_alive(link, link.session_id, frame)
            case frames.Goodbye(figures=figures):
                session_id = link.session_id
                self._clients.said(session_id, figures)
                self._drop(link)
                self._service.submit(SessionClosed(session_id=session_id))

    def _greet(self, link: PresenceLink, hello: frames.Hello) -> None:
        link.protocol = check_hello(hello, gpus=self._settings.gpus)
        session_id = hello.session_id or new_session_id()
        with contextlib.ExitStack() as undo:
            peer = identified(link.connection, self._identify)
            undo.callback(os.close, peer.pidfd)
            self.roll.check_room(peer.process, session_id)
            if not self._holders.are_of(session_id, peer.pidfd):
                msg = f"session {session_id} is another process's: open a session of your own"
                raise NotPermitted(msg)
            sentinel = None if self._holders.knows(session_id) else new_sentinel()
            for end in sentinel or ():
                undo.callback(end.close)
            event = introduction(hello, peer, session_id, admins=self._admins)
            answer = self._enter(link, event, hello)
            undo.pop_all()
        self._clients.greeted(session_id, hello.figures)
        link.pid, link.is_observer = peer.process.pid, hello.is_observer
        self.roll.enter(session_id, peer.process, hello)
        link.log("session %s is %s %s, pid %d", session_id, hello.program, hello.version, link.pid)
        if sentinel is None:
            os.close(peer.pidfd)
            self._welcome(link, event, answer, descriptors=())
            return
        ours, theirs = sentinel
        self._holders.add(session_id, pidfd=peer.pidfd, sentinel=ours.detach())
        with theirs:
            self._welcome(link, event, answer, descriptors=(theirs.fileno(),))

    def _enter(
        self, link: PresenceLink, event: SessionOpened | SessionReattached, hello: frames.Hello
    ) -> AnswerKeepalive:
        """Tell the broker who is here; then *link* is the session's, or nothing has changed."""
        session_id = event.session_id
        before = self._links.get(session_id)
        self._links[session_id] = link  # what the broker sends at once waits there for the welcome
        try:
            if isinstance(event, SessionReattached):
                answer = self._answered(event)
            else:
                self._service.admit(event)
                # Leases that the process holds of an earlier session are this one's no more.
                ended = tuple(use.lease_id for use in hello.uses)
                answer = AnswerKeepalive(
                    session_id=session_id, request_id=new_request_id(), ended=ended, unheard=()
                )
        except BrokerError:
            del self._links[session_id]
            if before is not None:
                self._links[session_id] = before
            raise
        link.session_id = session_id
        if before is not None:
            self._drop(before)
        return answer

    def _welcome(
        self,
        link: PresenceLink,
        event: SessionOpened | SessionReattached,
        answer: AnswerKeepalive,
        *,
        descriptors: tuple[int, ...],
    ) -> None:
        greeting = frames.Greeting(
            protocol=link.protocol,
            session_id=event.session_id,
            token=new_token(),
            tenant=event.tenant,
            term_seconds=self._settings.term_seconds,
            smallest_slab_bytes=self._settings.smallest_slab_bytes,
            largest_slab_bytes=self._settings.largest_slab_bytes,
            daemon_version=__version__,
            ended=answer.ended,
            unheard=answer.unheard,
            has_sentinel=bool(descriptors),
        )
        link.token = greeting.token
        self._tokens[greeting.token] = link
        try:
            link.welcome(frames.welcome(greeting), descriptors)
        except OSError as error:  # out of descriptors; the process may try again
            logger.warning("cannot welcome session %s: %s", event.session_id, error)
            self._link_ended(link, "the sentinel can't be sent")

    def _keep_alive(
        self, link: PresenceLink, session_id: SessionId, frame: frames.Keepalive
    ) -> None:
        answer = self._answered(
            KeepaliveReceived(
                session_id=session_id,
                request_id=new_request_id(),
                uses=frame.uses,
                host_room=frame.host_room,
            )
        )
        self._clients.said(session_id, frame.figures)
        foreign = {*answer.ended, *answer.unheard}
        has = [use.lease_id for use in frame.uses if use.lease_id not in foreign]
        self._keepers.drop_handles(has)  # nobody needs ours any more
        link.push(frames.keepalive_reply(frame.sequence, answer))

    def _answered(self, event: KeepaliveReceived | SessionReattached) -> AnswerKeepalive:
        answer = self._service.answer_now(event)
        if not isinstance(answer, AnswerKeepalive):
            raise BrokerBug(f"{type(event).__name__} was answered by {type(answer).__name__}")
        return answer

    def _link_ended(self, link: PresenceLink, reason: str) -> None:
        session_id = link.session_id
        is_current = session_id is not None and self._links.get(session_id) is link
        self._drop(link)
        if session_id is not None and is_current and not self._is_closed:
            link.log("session %s: presence ended: %s", session_id, reason)
            self._service.submit(PresenceEnded(session_id=session_id))

    def _drop(self, link: PresenceLink) -> None:
        """Close a link and forget its token, telling the broker nothing. May be called twice."""
        link.close()
        if link not in self._all:
            return
        self._all.discard(link)
        self._per_uid[link.uid] -= 1
        if not self._per_uid[link.uid]:
            del self._per_uid[link.uid]
        self._tokens.pop(link.token, None)
        if link.session_id is not None and self._links.get(link.session_id) is link:
            del self._links[link.session_id]
