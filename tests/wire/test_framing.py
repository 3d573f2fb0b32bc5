"""Frames and descriptors over a real socket pair."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from aqua_protos.framing import (
    LARGEST_FRAME_BYTES,
    Disconnected,
    FrameReader,
    FrameTooLarge,
    encode_frame,
    send_frame,
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    theirs.settimeout(5)
    with ours, theirs:
        yield ours, theirs


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def receive(reader: FrameReader, connection: socket.socket, count: int) -> list[bytes]:
    frames: list[bytes] = []
    while len(frames) < count:
        reader.read_from(connection)
        frames.extend(reader.frames())
    return frames


def test_frames_arrive_whole_and_in_order(pair: tuple[socket.socket, socket.socket]) -> None:
    """Several frames in one write are cut apart again, the empty one included."""
    ours, theirs = pair
    ours.sendall(encode_frame(b"one") + encode_frame(b"") + encode_frame(b"three"))
    assert receive(FrameReader(), theirs, 3) == [b"one", b"", b"three"]


def test_a_frame_that_comes_byte_by_byte_is_put_together(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Nothing is yielded until the last byte is there."""
    ours, theirs = pair
    reader = FrameReader()
    frame = encode_frame(b"slowly")
    for position in range(len(frame) - 1):
        ours.sendall(frame[position : position + 1])
        reader.read_from(theirs)
        assert list(reader.frames()) == []
    ours.sendall(frame[-1:])
    assert receive(reader, theirs, 1) == [b"slowly"]


def test_descriptors_go_with_their_frame(pair: tuple[socket.socket, socket.socket]) -> None:
    """Two frames, each with a descriptor, between frames without: each gets its own."""
    ours, theirs = pair
    files = [os.memfd_create(f"file-{number}") for number in range(2)]
    for number, file in enumerate(files):
        os.write(file, b"%d" % number)
        send_frame(ours, b"plain")
        send_frame(ours, b"with", [file])
        os.close(file)
    reader = FrameReader()
    assert receive(reader, theirs, 4) == [b"plain", b"with", b"plain", b"with"]
    for number in range(2):
        (received,) = reader.take_descriptors(1)
        assert os.pread(received, 10, 0) == b"%d" % number
        assert not os.get_inheritable(received)
        os.close(received)


def test_a_missing_descriptor_is_an_error_and_takes_nothing(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """A peer that promises two descriptors and sends one is found out."""
    ours, theirs = pair
    reader = FrameReader()
    send_frame(ours, b"x", [ours.fileno()])
    receive(reader, theirs, 1)
    with pytest.raises(ValueError, match="should carry 2 descriptors, 1 came"):
        reader.take_descriptors(2)
    os.close(reader.take_descriptors(1)[0])


def test_a_reader_that_takes_no_descriptors_gets_none(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """The kernel drops what a client pushes at a daemon: its descriptor table stays as it was."""
    ours, theirs = pair
    reader = FrameReader(accepts_descriptors=False)
    open_before = open_descriptors()
    for _ in range(20):
        send_frame(ours, b"x", [ours.fileno()] * 8)
    assert receive(reader, theirs, 20) == [b"x"] * 20
    assert open_descriptors() == open_before


def test_descriptors_that_nobody_took_are_closed(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Closing the reader closes what is left in it, once."""
    ours, theirs = pair
    reader = FrameReader()
    open_before = open_descriptors()
    send_frame(ours, b"x", [ours.fileno()])
    receive(reader, theirs, 1)
    assert open_descriptors() == open_before + 1
    reader.close()
    reader.close()
    assert open_descriptors() == open_before


def test_an_oversized_frame_is_refused_by_both_ends(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """The sender sends nothing of it; the receiver stops at the header, before the bytes."""
    ours, theirs = pair
    with pytest.raises(FrameTooLarge, match="over the limit"):
        send_frame(ours, bytes(LARGEST_FRAME_BYTES + 1))
    ours.sendall(struct.pack("!I", LARGEST_FRAME_BYTES + 1))
    reader = FrameReader()
    reader.read_from(theirs)
    with pytest.raises(FrameTooLarge, match="over the limit"):
        list(reader.frames())


def test_the_end_of_the_stream_is_named(pair: tuple[socket.socket, socket.socket]) -> None:
    """A closed peer raises Disconnected, also in the middle of a frame."""
    ours, theirs = pair
    reader = FrameReader()
    ours.sendall(encode_frame(b"cut short")[:-2])
    ours.shutdown(socket.SHUT_WR)
    reader.read_from(theirs)
    assert list(reader.frames()) == []
    with pytest.raises(Disconnected):
        reader.read_from(theirs)


class LeftBehind(socket.socket):
    """A socket whose peer leaves as soon as a message with descriptors is out."""

    peer: socket.socket

    def sendmsg(self, *message: object) -> int:
        sent = super().sendmsg(*message)  # type: ignore[arg-type]
        self.peer.close()
        return sent


def test_a_peer_that_leaves_after_the_frame_fails_nothing(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """The frame is out whole; what the peer sent before it left can still be read."""
    near, far = pair
    far.sendall(b"bye")
    with LeftBehind(fileno=near.detach()) as sender:
        sender.settimeout(5)
        sender.peer = far
        with Path("/dev/null").open() as sent:
            send_frame(sender, b"welcome", [sent.fileno()])
        assert sender.recv(3) == b"bye"
