"""One framed connection on an asyncio loop: never blocks, never waits for a slow peer.

Covers reading frames into a callback, sending frames with their descriptors, and a bounded queue
for what the peer has not read yet. Does not cover what a frame says, nor connecting: it is given a
connected Unix stream socket, and owns it from then on.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aqua_protos.framing import (
    MOST_DESCRIPTORS,
    Disconnected,
    FrameReader,
    FrameTooLarge,
    encode_frame,
)

# A report of 8 GPUs with 1,000 slabs is 0.3 MiB, once a second: this is half a minute of not reading.
MOST_QUEUED_BYTES = 8 * 2**20
# Frames in one go; the rest waits, so that one busy peer does not hold up the others.
_MOST_SENDS = 64
# What is sent as one: the kernel takes so little whole or not at all, so that no frame's descriptors
# are ahead of its bytes.
_MOST_BYTES_AS_ONE = 16 * 1024


class BadFrame(Exception):
    """The peer sent what the protocol does not have: the connection can't be trusted any more."""


@dataclass(slots=True, kw_only=True)
class _Outgoing:
    rest: memoryview
    descriptors: list[int]  # our own copies, closed once sent


class FrameLink:
    """Sends and receives frames until either side ends it.

    *on_frame* gets each whole frame and may raise `BadFrame`, which ends the link. *on_end* is
    called once with the reason when the link ends by anything but `close`, never from inside `send`.
    A peer whose fault ends the link is told so by the frame that *last_words* makes of the reason.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        on_frame: Callable[[bytes], None],
        on_end: Callable[[str], None],
        last_words: Callable[[str], bytes] | None = None,
        accepts_descriptors: bool = True,
        most_queued_bytes: int = MOST_QUEUED_BYTES,
    ) -> None:
        connection.settimeout(0)
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._on_frame = on_frame
        self._on_end = on_end
        self._last_words = last_words
        self._reader = FrameReader(accepts_descriptors=accepts_descriptors)
        self._queue: deque[_Outgoing] = deque()
        self._queued_bytes = 0
        self._most_queued_bytes = most_queued_bytes
        self._is_reading = False
        self._waits_for_room = False
        self.is_closed = False
        self._loop.add_reader(connection, self._read)

    def send(self, payload: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send what the socket takes now, queue the rest; nothing happens once it is closed.

        Raises:
            OSError: *descriptors* are none, or could not be copied; nothing was sent or queued.
        """
        self.send_together((payload,), descriptors)

    def send_together(self, payloads: Sequence[bytes], descriptors: Sequence[int] = ()) -> None:
        """As `send`, several frames at the cost of one; the first carries the *descriptors*."""
        if self.is_closed:
            return
        frame = b"".join(map(encode_frame, payloads))
        # Nearly always all of it is taken at once: then no descriptor need be copied.
        sent = 0 if self._queue else self._send_now(frame, descriptors)
        if sent < len(frame):
            self._enqueue(memoryview(frame)[sent:], () if sent else descriptors)
            self._wait_for_room()

    def send_soon(self, payload: bytes, descriptors: Sequence[int] = ()) -> None:
        """As `send`, at the end of this turn of the loop, at the cost of one for all of the turn.

        To wake the peer costs as much as deciding what to tell it. Of what comes by this link the
        answers go together, and sooner.
        """
        if self.is_closed:
            return
        is_first = not self._queue
        self._enqueue(memoryview(encode_frame(payload)), descriptors)
        if is_first and not self._is_reading:
            self._loop.call_soon(self._write)

    def take_descriptors(self, count: int) -> list[int]:
        """The next *count* descriptors that came; the caller owns and closes them.

        Raises:
            ValueError: fewer came.
        """
        return self._reader.take_descriptors(count)

    @property
    def waiting_descriptors(self) -> int:
        """How many came that nobody has taken."""
        return self._reader.waiting_descriptors

    @property
    def queued_descriptors(self) -> int:
        """How many of our copies wait for a peer that does not read."""
        return sum(len(outgoing.descriptors) for outgoing in self._queue)

    def close(self) -> None:
        """Close the connection and every descriptor in it. May be called twice."""
        if self.is_closed:
            return
        self.is_closed = True
        self._loop.remove_reader(self._connection)
        self._stop_waiting()
        self._connection.close()
        self._reader.close()
        for outgoing in self._queue:
            _close_all(outgoing.descriptors)
        self._queue.clear()

    def _read(self) -> None:
        try:
            self._reader.read_from(self._connection)
        except (BlockingIOError, InterruptedError):
            return
        except (Disconnected, OSError) as error:
            self._end(str(error))
            return
        self._is_reading = True
        try:
            for payload in self._reader.frames():
                self._on_frame(payload)
                if self.is_closed:
                    return
        except (FrameTooLarge, BadFrame) as error:
            self._write()  # answers to what came before it
            if self._last_words is not None:
                self.send(self._last_words(str(error)))
            self._end(str(error))
            return
        finally:
            self._is_reading = False
        if self._queue:
            self._write()
        if self._reader.waiting_descriptors > MOST_DESCRIPTORS:
            self._end("descriptors came that no frame asks for")

    def _send_now(self, frame: bytes, descriptors: Sequence[int]) -> int:
        """How many bytes the socket took; all, where the link is about to end."""
        try:
            if descriptors:
                return socket.send_fds(self._connection, [frame], descriptors)
            return self._connection.send(frame)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            if error.errno == errno.EBADF:  # a descriptor of the caller's
                raise
            self._end_soon(str(error))
            return len(frame)

    def _enqueue(self, rest: memoryview, descriptors: Sequence[int]) -> None:
        self._queue.append(_Outgoing(rest=rest, descriptors=_copies_of(descriptors)))
        self._queued_bytes += len(rest)
        if self._queued_bytes > self._most_queued_bytes:
            self._end_soon(f"the peer does not read: {self._queued_bytes} bytes wait for it")

    def _write(self) -> None:
        for _ in range(_MOST_SENDS):
            if not self._queue or self.is_closed:
                break
            together = self._next_as_one()
            descriptors = [one for outgoing in together for one in outgoing.descriptors]
            try:
                sent = socket.send_fds(
                    self._connection, [one.rest for one in together], descriptors
                )
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._end_soon(str(error))
                return
            self._sent(together, sent)
        if self._queue:
            self._wait_for_room()
        else:
            self._stop_waiting()

    def _wait_for_room(self) -> None:
        self._waits_for_room = True
        self._loop.add_writer(self._connection, self._write)

    def _stop_waiting(self) -> None:
        if self._waits_for_room:
            self._waits_for_room = False
            self._loop.remove_writer(self._connection)

    def _next_as_one(self) -> list[_Outgoing]:
        """The first of the queue, and what may go along."""
        together: list[_Outgoing] = []
        nbytes, descriptors = 0, 0
        for outgoing in self._queue:
            nbytes += len(outgoing.rest)
            descriptors += len(outgoing.descriptors)
            if together and (nbytes > _MOST_BYTES_AS_ONE or descriptors > MOST_DESCRIPTORS):
                break
            together.append(outgoing)
        return together

    def _sent(self, together: list[_Outgoing], nbytes: int) -> None:
        self._queued_bytes -= nbytes
        for outgoing in together:
            _close_all(outgoing.descriptors)
            outgoing.descriptors = []
            taken = min(nbytes, len(outgoing.rest))
            outgoing.rest = outgoing.rest[taken:]
            nbytes -= taken
            if not outgoing.rest:
                self._queue.popleft()

    def _end_soon(self, reason: str) -> None:
        # The sender is in the middle of something else: tell it when that is done.
        self._stop_waiting()
        self._loop.call_soon(self._end, reason)

    def _end(self, reason: str) -> None:
        if not self.is_closed:
            self.close()
            self._on_end(reason)


def _copies_of(descriptors: Sequence[int]) -> list[int]:
    copies: list[int] = []
    try:
        copies.extend(map(os.dup, descriptors))
    except OSError:
        _close_all(copies)
        raise
    return copies


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
