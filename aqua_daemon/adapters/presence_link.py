"""One client's presence connection: what it may send, and what waits to be sent to it.

Covers the limits on a client that floods, says nothing, or does not read. Does not cover what its
frames mean: that is for `presence`. Nothing here ever waits for the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aqua_protos.frame_link import BadFrame, FrameLink
from aqua_protos.framing import send_frame

from aqua_daemon.adapters.statuses import TooLate, TooMany, status_of
from aqua_daemon.adapters.wire import frames
from aqua_daemon.core.errors import BrokerError
from aqua_daemon.core.model import SessionId
from aqua_daemon.ports import Clock

# A page of a frame costs as much as the frame itself: a client can't buy more of the daemon's time
# with few large frames than with many small ones.
# A frame takes the daemon half a millisecond, so a process with all the sessions it may have is
# heard for a second at most before it is too fast.
_FRAME_CREDITS = 8
# How many calls there may be in a second is the call gate's to say, and above its limit a call costs
# next to nothing; this only ends a link of nothing else.
_CALL_CREDITS = 1 / 128
_BYTES_PER_CREDIT = 4096

logger = logging.getLogger("aqua.presence")


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceLimits:
    """What one client may ask of the presence socket."""

    connections: int = 4096
    connections_per_uid: int = 256
    sessions_per_process: int = 64  # a session is two descriptors of ours until its process ends
    hello_seconds: float = 2.0
    # A client sends a frame in 3.3 s, under the shortest term six a second; the largest keepalive
    # costs 228 credits.
    credits_per_second: float = 64.0
    most_credits: float = 256.0
    most_queued_bytes: int = 2**20  # a slow reader's pushes; a revoke of 1,000 leases is 34 KiB
    most_queued_descriptors: int = 64


class PresenceLink:
    """A connection, from its accepting to its end."""

    def __init__(
        self,
        connection: socket.socket,
        *,
        uid: int,
        clock: Clock,
        limits: PresenceLimits,
        on_frame: Callable[[PresenceLink, bytes], None],
        on_end: Callable[[PresenceLink, str], None],
    ) -> None:
        """Owns *connection*; *on_end* is called when the link ends by anything but `close`."""
        self.connection = connection
        self.uid = uid
        self.session_id: SessionId | None = None
        self.token = b""
        self.protocol = 0
        self.pid = 0
        self.is_observer = False
        self._clock = clock
        self._limits = limits
        self._on_frame = on_frame
        self._on_end = on_end
        self._credits = limits.most_credits
        self._credited_at = clock()
        self._held: list[bytes] | None = []  # pushes wait here until the client was welcomed
        self._link = FrameLink(
            connection,
            on_frame=self._frame_came,
            on_end=self._ended,
            last_words=_last_words,
            accepts_descriptors=False,
            most_queued_bytes=limits.most_queued_bytes,
        )
        loop = asyncio.get_running_loop()
        self._hello_timer = loop.call_later(limits.hello_seconds, self._hello_is_late)

    def log(self, text: str, *words: object) -> None:
        """Tell people about this client; one that only looks is no news."""
        logger.log(logging.DEBUG if self.is_observer else logging.INFO, text, *words)

    def welcome(self, payload: bytes, descriptors: Sequence[int]) -> None:
        """Answer Hello, then send what was pushed meanwhile.

        Raises:
            OSError: a descriptor could not be copied; nothing was sent.
        """
        self._link.send(payload, descriptors)
        self._hello_timer.cancel()
        held, self._held = self._held or [], None
        for push in held:
            self._link.send(push)

    def push(self, payload: bytes) -> None:
        """Send a frame, after the welcome. Never waits; a client that does not read loses the link."""
        if self._held is None:
            self._link.send(payload)
        else:
            self._held.append(payload)

    def push_descriptor(self, payload: bytes, descriptor: int, *then: bytes) -> bool:
        """Send a frame with a descriptor, which stays the caller's, and what is to come *then*.

        False: it can't be sent, and nothing was.
        """
        if self._held is not None or self._link.is_closed:
            return False
        if self._link.queued_descriptors >= self._limits.most_queued_descriptors:
            return False
        try:
            self._link.send_together((payload, *then), [descriptor])
        except OSError:  # we are out of descriptors
            return False
        return True

    def refuse(self, error: BrokerError) -> None:
        """Say no; the link stays."""
        self._link.send(_refusal(error))

    def close(self) -> None:
        """End the link. May be called twice."""
        self._hello_timer.cancel()
        self._link.close()

    def _frame_came(self, payload: bytes) -> None:
        now = self._clock()
        earned = (now - self._credited_at) * self._limits.credits_per_second
        self._credits = min(self._limits.most_credits, self._credits + earned)
        self._credited_at = now
        if frames.is_call(payload):
            self._credits -= _CALL_CREDITS + len(payload) // _BYTES_PER_CREDIT
        else:
            self._credits -= _FRAME_CREDITS + len(payload) / _BYTES_PER_CREDIT
        if self._credits < 0:
            msg = "frames come too fast: send a keepalive each third of a term, wait for its reply"
            raise BadFrame(msg)
        self._on_frame(self, payload)

    def _hello_is_late(self) -> None:
        msg = (
            f"no hello within {self._limits.hello_seconds:g} s: send it first, as soon as the "
            "connection is up"
        )
        self.refuse(TooLate(msg))
        self.close()
        self._on_end(self, msg)

    def _ended(self, reason: str) -> None:
        self._hello_timer.cancel()
        self._on_end(self, reason)


def _last_words(reason: str) -> bytes:
    # Both ways to lose the link by one's own frames are asking for too much.
    error = TooMany(f"{reason}; the connection ends here, re-attach on another")
    return _refusal(error)


def _refusal(error: BrokerError) -> bytes:
    return frames.refusal(status_of(error).name, str(error), reason=error.reason)


def refuse_connection(connection: socket.socket, error: BrokerError) -> None:
    """Say no to a connection that is not taken, and close it."""
    with contextlib.closing(connection), contextlib.suppress(OSError):
        connection.settimeout(0)
        send_frame(connection, _refusal(error))
