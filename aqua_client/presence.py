"""The thread that keeps a session alive: attach, keepalives, pushes, and attaching again.

Story of a session: Hello, Welcome (with the sentinel); a keepalive each third of a term that names
every lease; pushes in between. When the connection ends, however it does, the same session is
re-attached to whichever daemon is there next, with its leases; when that daemon knows no such
session (NOT_FOUND), its leases have ended and a new session begins.

Does not cover calls: those go by `calls`, with the token that the Welcome brings.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import deque
from typing import assert_never

from aqua_client.counters import Counters, Figures
from aqua_client.descriptors import ArrivingDescriptors
from aqua_client.link import Link, LinkBroken, Waker
from aqua_client.listeners import Gate, SessionListener, Standing
from aqua_client.records import (
    OTHER_PROTOCOL,
    CallAnswer,
    DescriptorArrived,
    LeasesEnded,
    LeasesLost,
    Refusal,
    Restarting,
    RevokeNotice,
    Unheard,
    Welcome,
)
from aqua_client.sentinels import Sentinels
from aqua_client.settings import ClientSettings
from aqua_client.wire import Malformed
from aqua_client.wire_frames import (
    goodbye_frame,
    hello_frame,
    is_of_call,
    keepalive_frame,
    parse_daemon_frame,
)

THREAD_NAME = "aqua-session"
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0
# Longer than start-up waits: a busy daemon that answers late must not be asked for ever.
GREETING_SECONDS = 2.0
# Two keepalives unanswered: the daemon, if it lives, takes the session for suspect by now.
SILENCE_TERMS = 2 / 3
# All sessions send at so many moments in a third of a term: waking a daemon costs ten keepalives.
KEEPALIVE_MOMENTS = 16

logger = logging.getLogger("aqua")


class Presence:
    """The session's thread and what it knows."""

    def __init__(
        self,
        settings: ClientSettings,
        listener: SessionListener,
        counters: Counters,
        gate: Gate,
        descriptors: ArrivingDescriptors,
        *,
        version: str,
    ) -> None:
        """Start nothing yet."""
        self.standing = Standing()
        self._settings = settings
        self._listener = listener
        self._counters = counters
        self._gate = gate
        self._descriptors = descriptors
        self._version = version
        self._waker: Waker | None = None  # made by the thread, which owns it
        self._link: Link | None = None
        self._session_id: str | None = None
        self._sentinels = Sentinels()
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._stopping = threading.Event()
        self._sequence = 0
        self._sent_figures: deque[Figures] = deque()  # one for each keepalive not yet answered
        self._heard_figures: Figures | None = None  # what some daemon has answered for
        self._tried = threading.Event()
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)

    def start(self, *, seconds: float) -> None:
        """Start the thread, and wait so long for its first try."""
        self._thread.start()
        self._tried.wait(seconds)

    def stop(self, *, seconds: float) -> None:
        """Say goodbye and end the thread, as far as that goes in *seconds*."""
        self._stopping.set()
        if self._waker is not None:
            self._waker.wake()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(seconds)

    def abandon_in_child(self) -> None:
        """Close the copies that a fork made, but not the sentinel's."""
        self.standing = Standing(reason="forked", welcome=self.standing.welcome)
        if self._link is not None:
            self._link.abandon_in_child()
        if self._waker is not None:
            self._waker.close()

    def _run(self) -> None:
        waker = self._new_waker()
        if waker is None:
            return
        while not self._stopping.is_set():
            self._attach_and_stay(waker)
            if not self._stopping.is_set():
                self._rest(waker)
        waker.close()
        self._sentinels.close()

    def _new_waker(self) -> Waker | None:
        """As soon as there are descriptors for it; None: told to stop before."""
        while not self._stopping.is_set():
            try:
                self._waker = Waker()
            except OSError as error:
                self._leave("no_descriptors", str(error))
                self._stopping.wait(LONGEST_PAUSE_SECONDS)
            else:
                return self._waker
        return None

    def _attach_and_stay(self, waker: Waker) -> None:
        """Attach, and converse until that ends; what ended it becomes the reason."""
        try:
            self._link = Link(self._settings.presence_path, waker, self._hear_of_call)
            welcome = self._greet(self._link)
            self._enter(welcome, self._link)
            self._converse(self._link, welcome.term_seconds)
        except LinkBroken as broken:
            self._leave(broken.reason, str(broken))
        except Malformed as error:
            self._leave("bad_frame", str(error))
        except Exception:
            # A fault of the listener must not end this thread: leases would lapse unseen.
            logger.exception("the session's thread failed; it connects again")
            self._leave("internal", "a fault of this library")
        finally:
            if self._link is not None:
                self._link.close()

    def _rest(self, waker: Waker) -> None:
        # Spread out: after a restart every client of the node comes at the same time.
        spread = random.uniform(0.5, 1.0)  # noqa: S311 - nothing secret about it
        waker.wait(self._pause_seconds * spread)
        self._pause_seconds = min(LONGEST_PAUSE_SECONDS, 2 * self._pause_seconds)

    def _greet(self, link: Link) -> Welcome:
        self._sent_figures.clear()
        link.send(
            hello_frame(
                home_gpu=self._settings.home_gpu,
                sub_tenant=self._settings.sub_tenant,
                program=self._settings.program,
                version=self._version,
                session_id=self._session_id,
                uses=self._listener.lease_uses() if self._session_id else (),
                room=self._listener.host_room(),
                figures=self._heard_figures,
            )
        )
        payload = link.next_payload(deadline=time.monotonic() + GREETING_SECONDS)
        if payload is None:
            msg = f"no answer to the greeting in {GREETING_SECONDS:g} s"
            raise LinkBroken(msg, reason="silent")
        match parse_daemon_frame(payload, now=time.monotonic()):
            case Welcome() as welcome:
                return welcome
            case Refusal(code="NOT_FOUND") if self._session_id is not None:
                self._forget_session()
                msg = "the daemon knows no such session"
                raise LinkBroken(msg, reason="unknown_session")
            case Refusal() as refusal:
                msg = f"the daemon refuses the session: {refusal.code}: {refusal.message}"
                raise LinkBroken(msg, reason=refusal.reason)
            case Restarting():
                msg = "the daemon is about to stop"
                raise LinkBroken(msg, reason="restarting")
            case other:
                msg = f"the daemon answers a greeting by {type(other).__name__}"
                raise Malformed(msg)

    def _forget_session(self) -> None:
        self._session_id = None
        self._pause_seconds = FIRST_PAUSE_SECONDS  # the next greeting opens a session
        ended = tuple(use.lease_id for use in self._listener.lease_uses())
        if ended:
            self._listener.leases_ended(ended)

    def _enter(self, welcome: Welcome, link: Link) -> None:
        if welcome.has_sentinel:
            self._sentinels.add(link.take_descriptor())
        is_new = self._session_id is None
        if not is_new and welcome.session_id != self._session_id:
            msg = f"asked for session {self._session_id}, welcomed as {welcome.session_id}"
            raise Malformed(msg)
        self._session_id = welcome.session_id
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self.standing = Standing(attached=True, reason="", welcome=welcome)
        self._gate.open(welcome.token, link.ask if welcome.takes_calls else None)
        logger.info("attached to the daemon as session %s", welcome.session_id)
        self._listener.attached()
        if welcome.ended_lease_ids:
            self._listener.leases_ended(welcome.ended_lease_ids)
        self._counters.session_opens += is_new
        self._counters.session_reattaches += not is_new
        self._tried.set()

    def _leave(self, reason: str, message: str) -> None:
        was, self.standing = self.standing, Standing(reason=reason, welcome=self.standing.welcome)
        self._tried.set()
        if was.reason != reason:
            # Most reasons pass by themselves; this one is for somebody to see to.
            level = logging.WARNING if reason == OTHER_PROTOCOL else logging.INFO
            logger.log(level, "not attached to the daemon (%s): %s", reason, message)
        self._gate.shut(reason)
        if was.attached:
            self._counters.session_detaches += 1
            self._descriptors.link_ended()
            self._listener.detached(reason)

    def _converse(self, link: Link, term_seconds: float) -> None:
        """Keepalives out, pushes in, until the link breaks or the session stops."""
        keepalive_at = next_moment(time.monotonic(), term_seconds)
        unanswered_since: float | None = None
        while not self._stopping.is_set():
            payload = link.next_payload(deadline=keepalive_at)
            now = time.monotonic()
            if payload is not None:
                unanswered_since = None
                self._hear(payload, link)
            elif unanswered_since is not None and now > unanswered_since + (
                SILENCE_TERMS * term_seconds
            ):
                msg = f"two keepalives unanswered for {now - unanswered_since:.1f} s"
                raise LinkBroken(msg, reason="silent")
            if now >= keepalive_at:
                keepalive_at = next_moment(now, term_seconds)
                unanswered_since = unanswered_since or now
                self._send_keepalive(link)
        link.send(goodbye_frame(self._counters.figures()))

    def _send_keepalive(self, link: Link) -> None:
        self._sequence += 1
        uses, room = self._listener.lease_uses(), self._listener.host_room()
        figures = self._counters.figures()
        self._sent_figures.append(figures)
        news = None if figures == self._heard_figures else figures  # an idle client has none
        link.send(keepalive_frame(self._sequence, uses, room, news))

    def _hear_of_call(self, payload: bytes, link: Link) -> bool:
        """A caller has read this; False: it is for the session's thread, also to find fault with."""
        with contextlib.suppress(Malformed):
            if is_of_call(payload):
                self._hear(payload, link)
                return True
        return False

    def _hear(self, payload: bytes, link: Link) -> None:
        match parse_daemon_frame(payload, now=time.monotonic()):
            case RevokeNotice() as notice:
                self._listener.revoked(notice)
            case CallAnswer() as answer:
                self._gate.heard(answer)
            case DescriptorArrived(lease_id=lease_id):
                self._descriptors.put(lease_id, link.take_descriptor())
            case LeasesEnded(lease_ids=lease_ids):  # a keepalive's answer, which come in order
                if self._sent_figures:
                    self._heard_figures = self._sent_figures.popleft()
                if lease_ids:
                    self._listener.leases_ended(lease_ids)
            case LeasesLost(lease_ids=lease_ids, reason=reason):
                self._listener.leases_lost(lease_ids, reason)
            case Restarting():
                msg = "the daemon stops; another one is expected"
                raise LinkBroken(msg, reason="restarting")
            case Refusal(code=code, message=message):
                msg = f"the daemon ends the session: {code}: {message}"
                raise LinkBroken(msg, reason="refused")
            case Welcome():
                msg = "a second welcome"
                raise Malformed(msg)
            case Unheard():
                pass
            case never:
                assert_never(never)


def next_moment(now: float, term_seconds: float) -> float:
    """When the next keepalive is due: a third of a term from *now*, at the moment before that."""
    apart_seconds = term_seconds / 3 / KEEPALIVE_MOMENTS
    return (now + term_seconds / 3) // apart_seconds * apart_seconds
