"""Frames over a Unix stream socket: a 4-byte big-endian length, then that many bytes.

Covers cutting a byte stream into frames and handing each frame the descriptors that came with it.
Does not cover what a frame says: that is for the messages beside this module.

Which descriptors belong to which frame: the sender passes a frame's descriptors with the frame's
first bytes, and the kernel never delivers descriptors later than the bytes they were sent with. So
descriptors queue in order, and a receiver that knows from a frame's content that it carries n of
them takes the next n (`FrameReader.take_descriptors`).
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence

HEADER = struct.Struct("!I")
LARGEST_FRAME_BYTES = 4 * 2**20  # a keepalive of 10,000 leases is 0.7 MiB
MOST_DESCRIPTORS = 16  # in one read; the protocol never sends more than 2 with a frame
_READ_BYTES = 64 * 1024
# As plain numbers: to combine the flags of an enum takes as long as to read from the socket.
_CLOSE_ON_EXEC, _CUT_SHORT = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC)
_AT_ONCE = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)


class FrameTooLarge(ValueError):
    """A frame says that it is longer than either side may send: the stream can't be trusted."""


class Disconnected(ConnectionError):
    """The other end has closed the connection."""


def encode_frame(payload: bytes) -> bytes:
    """The bytes that carry *payload*.

    Raises:
        FrameTooLarge: the payload is over `LARGEST_FRAME_BYTES`.
    """
    if len(payload) > LARGEST_FRAME_BYTES:
        msg = f"a frame of {len(payload)} bytes is over the limit of {LARGEST_FRAME_BYTES}"
        raise FrameTooLarge(msg)
    return HEADER.pack(len(payload)) + payload


def send_frame(connection: socket.socket, payload: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one whole frame, blocking as the socket's timeout says.

    Raises:
        FrameTooLarge: nothing was sent.
        OSError: the peer is gone or slow; part of a frame may be out, so close the connection.
    """
    frame = encode_frame(payload)
    sent = socket.send_fds(connection, [frame], list(descriptors)) if descriptors else 0
    if sent < len(frame):  # sending nothing to a peer that has left would fail a frame that is out
        connection.sendall(memoryview(frame)[sent:])


class FrameReader:
    """Cuts what a socket delivers into frames, and keeps the descriptors that came along."""

    def __init__(self, *, accepts_descriptors: bool = True) -> None:
        """Without *accepts_descriptors* the kernel drops whatever descriptors the peer sends."""
        self._bytes = bytearray()
        self._descriptors: deque[int] = deque()
        self._has_lost_descriptors = False
        item_bytes = array.array("i").itemsize
        self._space = socket.CMSG_SPACE(MOST_DESCRIPTORS * item_bytes) if accepts_descriptors else 0

    def read_from(self, connection: socket.socket, *, waits: bool = True) -> None:
        """Take in what the socket has now; without *waits* a socket that blocks does not.

        Raises:
            Disconnected: the other end closed.
            BlockingIOError, TimeoutError: nothing there (in time).
        """
        chunk, ancillary, flags, _address = connection.recvmsg(
            _READ_BYTES, self._space, _CLOSE_ON_EXEC if waits else _AT_ONCE
        )
        if self._space and flags & _CUT_SHORT:
            self._has_lost_descriptors = True
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(content[: len(content) - len(content) % received.itemsize])
                self._descriptors.extend(received)
        if not chunk:
            msg = "the other end has closed the connection"
            raise Disconnected(msg)
        self._bytes += chunk

    def frames(self) -> Iterator[bytes]:
        """Yield each whole frame once.

        Raises:
            FrameTooLarge: the next frame is over the limit; close the connection.
        """
        while len(self._bytes) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._bytes)
            if length > LARGEST_FRAME_BYTES:
                msg = f"a frame of {length} bytes is over the limit of {LARGEST_FRAME_BYTES}"
                raise FrameTooLarge(msg)
            end = HEADER.size + length
            if len(self._bytes) < end:
                return
            payload = bytes(self._bytes[HEADER.size : end])
            del self._bytes[:end]
            yield payload

    def take_descriptors(self, count: int) -> list[int]:
        """Hand over the next *count* descriptors; the caller owns and closes them.

        Raises:
            ValueError: fewer came; those stay here.
        """
        if len(self._descriptors) < count:
            msg = f"the frame should carry {count} descriptors, {len(self._descriptors)} came"
            raise ValueError(msg)
        return [self._descriptors.popleft() for _ in range(count)]

    @property
    def has_lost_descriptors(self) -> bool:
        """Whether the kernel dropped some, as it does where this process may have no more."""
        return self._has_lost_descriptors

    @property
    def waiting_descriptors(self) -> int:
        """How many came that nobody took: more than one frame carries means a bad peer."""
        return len(self._descriptors)

    def close(self) -> None:
        """Close descriptors that nobody took. May be called twice."""
        while self._descriptors:
            os.close(self._descriptors.popleft())
