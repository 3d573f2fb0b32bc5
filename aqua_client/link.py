"""One presence connection: frames out, frames in, descriptors, and a way to be woken.

Does not cover what the frames say, nor when to connect again: that is `presence`.
"""

from __future__ import annotations

import contextlib
import select
import selectors
import socket
import struct
import threading
import time
from collections import deque

from aqua_protos.framing import Disconnected, FrameReader, FrameTooLarge, send_frame

# A daemon that can't take in a keepalive for so long is stuck; the socket buffers 200 KiB.
SEND_SECONDS = 0.5
_SEND_TIMEVAL = struct.pack("ll", int(SEND_SECONDS), int(SEND_SECONDS % 1 * 1e6))


class LinkBroken(ConnectionError):
    """The connection is of no more use; *reason* is the label to show."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Waker:
    """Ends the wait of the session's thread, from any other thread."""

    def __init__(self) -> None:
        self._far, self._near = socket.socketpair()
        self._far.settimeout(0.0)

    def fileno(self) -> int:
        """Readable once woken."""
        return self._near.fileno()

    def wake(self) -> None:
        """Wake once and for all: the thread is told to stop, nothing else."""
        try:
            self._far.send(b"!")
        except OSError:
            return  # woken already, or closed

    def wait(self, seconds: float) -> None:
        """Wait so long, or until woken."""
        with selectors.PollSelector() as selector:
            selector.register(self._near, selectors.EVENT_READ)
            selector.select(seconds)

    def close(self) -> None:
        """May be called twice."""
        self._far.close()
        self._near.close()


class Link:
    """Whoever opens it closes it. One thread reads; others may send."""

    def __init__(self, path: str, waker: Waker) -> None:
        """Connect, without waiting for the daemon to look.

        Raises:
            LinkBroken: nobody is there, or it is not ours to use.
        """
        self._reader = FrameReader()
        self._payloads: deque[bytes] = deque()
        self._waker = waker
        self._sending = threading.Lock()
        try:
            self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise LinkBroken(f"no socket can be had: {error}", reason="no_descriptors") from error
        try:
            # Under a timeout of Python's a connect fails at once where many others wait to be taken,
            # be it a flood; the kernel's has it wait in turn, for so long.
            # It holds for what is sent, too: Python's own would look at the socket before each use.
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEVAL)
            self._connection.connect(path)
        except OSError as error:
            self._connection.close()
            msg = f"can't connect to {path}: {error}"
            raise LinkBroken(msg, reason=_why_not_connected(error)) from error
        # poll and not epoll: an epoll set would be shared with forked children.
        self._incoming, self._room = select.poll(), select.poll()
        self._incoming.register(self._connection, select.POLLIN)
        self._incoming.register(waker, select.POLLIN)
        self._room.register(self._connection, select.POLLOUT)

    def send(self, payload: bytes) -> None:
        """Send one frame.

        Raises:
            LinkBroken: the daemon is gone, or does not read.
        """
        try:
            with self._sending:
                send_frame(self._connection, payload)
        except BlockingIOError as error:
            msg = f"the daemon has not read for {SEND_SECONDS:g} s"
            raise LinkBroken(msg, reason="silent") from error
        except (OSError, FrameTooLarge) as error:
            raise LinkBroken(str(error), reason="lost") from error

    def send_in_time(self, payload: bytes, seconds: float) -> None:
        """Send one frame that the socket has room for, from any thread.

        Raises:
            TimeoutError: there was none in *seconds*; nothing was sent.
            LinkBroken: the daemon is gone.
        """
        with self._sending:
            if not self._has_room(seconds):
                raise TimeoutError
            try:
                send_frame(self._connection, payload)
            except OSError as error:
                self._end_both_ways()  # part of the frame may be out
                raise LinkBroken(str(error), reason="lost") from error

    def next_payload(self, *, deadline: float) -> bytes | None:
        """The next frame's payload; None: not before *deadline*, or woken.

        Raises:
            LinkBroken: the connection has ended, or what comes is no frame.
        """
        while not self._payloads:
            if not self._is_readable(deadline):
                return None
            try:
                self._reader.read_from(self._connection)
                self._payloads.extend(self._reader.frames())
            except Disconnected as error:
                raise LinkBroken(str(error), reason="lost") from error
            except FrameTooLarge as error:
                raise LinkBroken(str(error), reason="bad_frame") from error
            except OSError as error:
                raise LinkBroken(str(error), reason="lost") from error
        return self._payloads.popleft()

    def take_descriptor(self) -> int:
        """The descriptor that belongs to the payload just read; the caller owns it.

        Raises:
            LinkBroken: none came.
        """
        try:
            (descriptor,) = self._reader.take_descriptors(1)
        except ValueError as error:
            reason = "no_descriptors" if self._reader.has_lost_descriptors else "bad_frame"
            raise LinkBroken(str(error), reason=reason) from error
        return descriptor

    def close(self) -> None:
        """Close it, and descriptors that nobody took. May be called twice, and in a child."""
        self._connection.close()
        self._reader.close()

    def _end_both_ways(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # whoever reads is told

    def _is_readable(self, deadline: float) -> bool:
        ready = self._incoming.poll(max(0.0, deadline - time.monotonic()) * 1000)
        return bool(ready) and all(one != self._waker.fileno() for one, _event in ready)

    def _has_room(self, seconds: float) -> bool:
        # The kernel says so while three quarters of the buffer are free, 150 KiB: more than a call
        # that goes out this way has, so that no frame is cut and no sender waits for its rest.
        if self._connection.fileno() < 0:
            return True  # closed: sending says so
        return bool(self._room.poll(seconds * 1000))


def _why_not_connected(error: OSError) -> str:
    match error:
        case PermissionError():
            return "no_permission"
        case BlockingIOError() | TimeoutError():
            return "silent"  # so many wait that the daemon can't be looking
        case _:
            return "no_daemon"
