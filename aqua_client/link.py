"""One presence connection: frames out, frames in, descriptors, and a way to be woken.

Does not cover what the frames say, nor when to connect again: that is `presence`.
"""

from __future__ import annotations

import select
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable

from aqua_protos.framing import FrameTooLarge, send_frame

from aqua_client.reading import LinkBroken, Reading

__all__ = ["Link", "LinkBroken", "Waker"]

# A daemon that can't take in a keepalive for so long is stuck; the socket buffers 200 KiB.
SEND_SECONDS = 0.5
_SEND_TIMEVAL = struct.pack("ll", int(SEND_SECONDS), int(SEND_SECONDS % 1 * 1e6))


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
    """Whoever opens it closes it. Threads may share it; `next_payload` is the session's."""

    def __init__(self, path: str, waker: Waker, hear: Callable[[bytes, Link], bool]) -> None:
        """Connect, without waiting for the daemon to look; *hear* as in `Reading`.

        Raises:
            LinkBroken: nobody is there, or it is not ours to use.
        """
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
        try:
            self._reading = Reading(self._connection, waker, lambda payload: hear(payload, self))
        except OSError as error:
            self._connection.close()
            raise LinkBroken(f"no epoll can be had: {error}", reason="no_descriptors") from error
        self._room = select.poll()
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
            except BaseException as error:
                self._reading.end_both_ways()  # part of the frame may be out
                if isinstance(error, OSError):
                    raise LinkBroken(str(error), reason="lost") from error
                raise

    def ask(self, payload: bytes, seconds: float, is_over: Callable[[], bool]) -> None:
        """Send one frame as `send_in_time`, and read for its answer until *is_over* if nobody else does."""
        self._reading.lead(
            lambda: self.send_in_time(payload, seconds),
            is_over=is_over,
            deadline=time.monotonic() + seconds,
        )

    def next_payload(self, *, deadline: float) -> bytes | None:
        """What the session's thread is to hear; see `Reading.next_payload`."""
        return self._reading.next_payload(deadline=deadline)

    def take_descriptor(self) -> int:
        """The descriptor that belongs to the payload just read; the caller owns it.

        Raises:
            LinkBroken: none came.
        """
        try:
            (descriptor,) = self._reading.take_descriptors(1)
        except ValueError as error:
            reason = "no_descriptors" if self._reading.has_lost_descriptors else "bad_frame"
            raise LinkBroken(str(error), reason=reason) from error
        return descriptor

    def close(self) -> None:
        """Close it, and descriptors that nobody took; who reads it is told. May be called twice."""
        self._reading.close()

    def abandon_in_child(self) -> None:
        """Close a forked child's copies; the link is its parent's."""
        self._reading.abandon()

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
