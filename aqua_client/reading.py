"""Who reads a presence connection: the session's thread, or a caller that waits there for its answer.

A caller whose answer another thread reads is woken by that thread, and then waits for the
interpreter's lock that it holds: half of what a call cost. So a caller reads by itself, if nobody
else does. What it finds that is of no call it leaves to the session's thread, and wakes it.

1. Whoever reads holds the turn; nobody waits for it long but `close`. An interrupt may come wherever
   a call begins or has ended, so it is taken and given back between two of these.
2. The session's thread waits on an epoll set, of which a caller takes the connection out for as long
   as it reads: that wakes nobody. The set is the link's own and is changed by no forked child.
3. What is read is heard or left to the session's thread before the turn is given back: descriptors
   are taken in the order of their frames, whoever reads these. A signal's exception in between would
   lose it, and so it ends the link.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from aqua_protos.framing import Disconnected, FrameReader, FrameTooLarge

from aqua_client.quick_turns import QUICK_TURNS

_TURN_SECONDS = 0.01  # longer than it takes to leave, shorter than anybody notices
_CLOSE_SECONDS = 1.0

logger = logging.getLogger("aqua")


class LinkBroken(ConnectionError):
    """The connection is of no more use; *reason* is the label to show."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Wakes(Protocol):
    """What ends the wait of the session's thread."""

    def fileno(self) -> int:
        """Readable once woken."""


class Reading:
    """The frames that come by one connection. Whoever makes it closes it."""

    def __init__(
        self, connection: socket.socket, waker: Wakes, hear: Callable[[bytes], bool]
    ) -> None:
        """*hear* takes the payload of a call and says True; False: it is for the session's thread.

        Raises:
            OSError: there is no descriptor left.
        """
        self._connection = connection
        self._waker = waker
        self._hear = hear
        self._frames = FrameReader()
        self._left: deque[bytes] = deque()  # to the session's thread
        self._broken: LinkBroken | None = None  # by what somebody read
        self._lock = threading.Lock()  # never held while somebody reads or waits
        self._given_back = threading.Condition(self._lock)
        self._turn: object | None = None  # of whoever reads
        self._is_led = False  # by a caller
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._set = select.epoll()
        self._set.register(waker.fileno(), select.EPOLLIN)
        self._set.register(connection, select.EPOLLIN)
        self._watched = select.EPOLLIN

    def next_payload(self, *, deadline: float) -> bytes | None:
        """What the session's thread is to hear next; None: not before *deadline*, or woken.

        Raises:
            LinkBroken: the connection has ended, or what comes is no frame.
        """
        while not self._left:
            self._watch()
            seconds = deadline - time.monotonic()
            ready = self._set.poll(max(0.0, seconds))
            if not ready or any(one == self._waker.fileno() for one, _event in ready):
                return None
            if not self._left:
                with QUICK_TURNS.wanted():  # to read gives the interpreter away; it may be a revoke
                    self._read_in_turn()
            # However much comes for callers, and whoever keeps the turn: keepalives have to go out.
            if seconds <= 0 and not self._left:
                return None
        return self._left.popleft()

    def lead(
        self, send: Callable[[], None], *, is_over: Callable[[], bool], deadline: float
    ) -> None:
        """*send*; then, if nobody else reads, read until *is_over* or *deadline*.

        Raises:
            LinkBroken: as `next_payload`; what *send* raises.
        """
        turn = object()
        try:
            with self._lock:
                if self._turn is None:
                    self._turn, self._is_led = turn, True
            if self._turn is not turn:
                send()
                return
            self._watch()
            send()
            while not is_over():
                seconds = deadline - time.monotonic()
                if seconds <= 0 or not self._is_readable(seconds):
                    return
                self._read()
        finally:
            with self._lock:
                is_mine = self._turn is turn
                if is_mine:
                    self._turn, self._is_led = None, False
                    self._given_back.notify_all()
            if is_mine:
                self._watch()

    def take_descriptors(self, count: int) -> list[int]:
        """Those that belong to the payload being heard; the caller owns them.

        Raises:
            ValueError: fewer came.
        """
        return self._frames.take_descriptors(count)

    @property
    def has_lost_descriptors(self) -> bool:
        """Whether the kernel dropped some, as it does where this process may have no more."""
        return self._frames.has_lost_descriptors

    def end_both_ways(self) -> None:
        """Whoever reads is told."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection once nobody reads it. May be called twice."""
        self.end_both_ways()
        with self._lock:
            self._given_back.wait_for(lambda: self._turn is None, _CLOSE_SECONDS)
            self.abandon()

    def abandon(self) -> None:
        """Close everything here, as a forked child has to: the parent goes on."""
        self._connection.close()
        self._set.close()
        self._frames.close()

    def _payloads(self) -> list[bytes]:
        try:
            self._frames.read_from(self._connection, waits=False)
            return list(self._frames.frames())
        except BlockingIOError:
            return []  # somebody else has read it
        except FrameTooLarge as error:
            raise LinkBroken(str(error), reason="bad_frame") from error
        except (Disconnected, OSError) as error:
            raise LinkBroken(str(error), reason="lost") from error

    def _read_in_turn(self) -> None:
        """The session's thread reads, unless a caller does or has broken the link."""
        with self._lock:
            if not self._given_back.wait_for(lambda: self._turn is None, _TURN_SECONDS):
                return
            self._turn = object()
        try:
            if self._broken is None:
                self._read()
            elif not self._left:
                raise self._broken
        finally:
            with self._lock:
                self._turn = None
                self._given_back.notify_all()

    def _read(self) -> None:
        try:
            for payload in self._payloads():
                if not self._hear(payload):
                    self._left.append(payload)
        except LinkBroken as broken:
            self._break(broken)
            raise
        except Exception as error:  # a fault of who hears, perhaps another caller's, is no caller's
            logger.exception("what came could not be heard; the session connects again")
            lost = LinkBroken(f"what came could not be heard: {error!r}", reason="internal")
            self._break(lost)
            raise lost from error
        except BaseException:
            self._break(LinkBroken("whoever read it was interrupted", reason="lost"))
            raise
        if self._left:
            self._watch()

    def _break(self, broken: LinkBroken) -> None:
        self._broken = broken
        self.end_both_ways()

    def _is_readable(self, seconds: float) -> bool:
        if self._connection.fileno() < 0:
            raise LinkBroken("the link was closed", reason="lost")
        return bool(self._poll.poll(seconds * 1000))

    def _watch(self) -> None:
        """Have the session's thread woken by what comes, unless a caller reads, and by what is left to it."""
        with self._lock:
            # What is left wakes it by a connection that can be written to, as it nearly always can.
            events = (0 if self._is_led else select.EPOLLIN) | (
                select.EPOLLOUT if self._left else 0
            )
            if events != self._watched and self._connection.fileno() >= 0:
                self._watched = -1  # until it has been done: an interrupt may come in between
                self._set.modify(self._connection, events)
                self._watched = events
