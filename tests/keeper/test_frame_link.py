"""One framed connection on a loop: whole frames, their descriptors, bounds, and its end."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable

import pytest
from aqua_protos.frame_link import BadFrame, FrameLink
from aqua_protos.framing import MOST_DESCRIPTORS, FrameReader, encode_frame

SECONDS = 20.0


class Ends:
    """A link, the plain socket at its other end, and what the link said."""

    def __init__(self, *, most_queued_bytes: int = 2**20) -> None:
        ours, self.far = socket.socketpair()
        self.far.settimeout(SECONDS)
        self.frames: asyncio.Queue[bytes] = asyncio.Queue()
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self.link = FrameLink(
            ours,
            on_frame=self._take,
            on_end=self.ended.put_nowait,
            most_queued_bytes=most_queued_bytes,
        )

    def close(self) -> None:
        self.link.close()
        self.link.close()  # twice is once
        self.far.close()

    def _take(self, payload: bytes) -> None:
        if payload == b"bad":
            msg = "that is no word of ours"
            raise BadFrame(msg)
        self.frames.put_nowait(payload)


def run(story: Callable[[Ends], Awaitable[None]], *, most_queued_bytes: int = 2**20) -> None:
    """Play *story*; nothing that it opened may be left."""

    async def play() -> None:
        ends = Ends(most_queued_bytes=most_queued_bytes)
        try:
            async with asyncio.timeout(SECONDS):
                await story(ends)
        finally:
            ends.close()

    before = open_descriptors()
    asyncio.run(play())
    assert open_descriptors() == before


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count is all that is wanted


def test_frames_come_whole_and_in_order() -> None:
    """However they were cut on the way."""

    async def story(ends: Ends) -> None:
        both = encode_frame(b"first") + encode_frame(b"second")
        ends.far.sendall(both[:3])
        ends.far.sendall(both[3:])
        assert [await ends.frames.get(), await ends.frames.get()] == [b"first", b"second"]

    run(story)


def test_a_queued_descriptor_is_a_copy() -> None:
    """The sender may close its own at once, long before the peer reads."""

    async def story(ends: Ends) -> None:
        reading, writing = os.pipe()
        ends.link.send(b"with a pipe", (writing,))
        os.close(writing)
        content, descriptors, _, _ = socket.recv_fds(ends.far, 100, 4)
        assert content == encode_frame(b"with a pipe")
        os.write(descriptors[0], b"x")
        assert os.read(reading, 1) == b"x"
        os.close(descriptors[0])
        os.close(reading)

    run(story)


def test_descriptors_that_cannot_all_be_copied_leave_no_copy() -> None:
    """Of a frame that is refused for one bad descriptor nothing is sent, and no copy stays open."""

    async def story(ends: Ends) -> None:
        before = open_descriptors()
        with pytest.raises(OSError, match="Bad file descriptor"):
            ends.link.send_soon(b"both", (ends.far.fileno(), -1))
        assert open_descriptors() == before
        ends.link.send(b"next")
        assert ends.far.recv(100) == encode_frame(b"next")

    run(story)


def test_what_is_sent_soon_goes_together() -> None:
    """All frames of one turn of the loop and their descriptors are one read for the peer."""

    async def story(ends: Ends) -> None:
        for payload in (b"first", b"second", b"third"):
            ends.link.send_soon(payload, (ends.far.fileno(),))
        ends.link.send(b"fourth")  # behind them: nothing overtakes
        await asyncio.sleep(0)
        content, descriptors, _, _ = socket.recv_fds(ends.far, 100, 4)
        for descriptor in descriptors:
            os.close(descriptor)
        payloads = (b"first", b"second", b"third", b"fourth")
        assert content == b"".join(map(encode_frame, payloads))
        assert len(descriptors) == 3

    run(story)


def test_answers_to_what_came_together_go_together() -> None:
    """They wait for no further turn of the loop, and those to what came before a bad frame go too."""
    ours, far = socket.socketpair()
    far.settimeout(SECONDS)

    async def story() -> None:
        def answer(payload: bytes) -> None:
            if payload == b"bad":
                msg = "that is no word of ours"
                raise BadFrame(msg)
            link.send_soon(payload.upper())

        ended: asyncio.Queue[str] = asyncio.Queue()
        link = FrameLink(ours, on_frame=answer, on_end=ended.put_nowait)
        far.sendall(encode_frame(b"first") + encode_frame(b"second"))
        far.sendall(encode_frame(b"third") + encode_frame(b"bad"))
        async with asyncio.timeout(SECONDS):
            assert "no word of ours" in await ended.get()

    asyncio.run(story())
    with far:
        assert far.recv(100) == b"".join(map(encode_frame, (b"FIRST", b"SECOND", b"THIRD")))


def test_no_read_has_more_descriptors_than_it_may() -> None:
    """What is sent soon is cut where its descriptors are too many for one read."""

    async def story(ends: Ends) -> None:
        count = MOST_DESCRIPTORS // 2 + 1
        for _ in range(count):
            ends.link.send_soon(b"two", (ends.far.fileno(), ends.far.fileno()))
        await asyncio.sleep(0)
        reader = FrameReader()
        frames: list[bytes] = []
        while len(frames) < count:
            reader.read_from(ends.far)
            for payload in reader.frames():
                frames.append(payload)
                for descriptor in reader.take_descriptors(2):
                    os.close(descriptor)
        assert not reader.has_lost_descriptors

    run(story)


def test_what_a_slow_peer_reads_late_is_all_there() -> None:
    """Within the bound, what the socket can't take waits and comes in order."""

    async def story(ends: Ends) -> None:
        payload = b"x" * 100_000
        for _ in range(8):
            ends.link.send(payload, (ends.far.fileno(),))
        frame = encode_frame(payload)
        ends.far.settimeout(0)
        received = b""
        while len(received) < 8 * len(frame):
            try:
                content, descriptors, _, _ = socket.recv_fds(ends.far, 65536, 4)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            received += content
            for descriptor in descriptors:
                os.close(descriptor)
        assert received == frame * 8

    run(story)


def test_a_peer_that_never_reads_is_left() -> None:
    """Past the bound the link ends and says why, after the sender is done."""

    async def story(ends: Ends) -> None:
        for _ in range(40):
            ends.link.send(b"x" * 100_000)
        assert ends.ended.empty()
        assert "does not read" in await ends.ended.get()
        assert ends.link.is_closed
        ends.link.send(b"into nothing")

    run(story)


def test_the_link_ends_when_the_peer_hangs_up() -> None:
    """It is told once."""

    async def story(ends: Ends) -> None:
        ends.far.close()
        assert "closed the connection" in await ends.ended.get()
        ends.link.send(b"into nothing")
        assert ends.ended.empty()

    run(story)


def test_a_bad_frame_ends_the_link() -> None:
    """What came before it counts, what came after it does not."""

    async def story(ends: Ends) -> None:
        for word in (b"good", b"bad", b"late"):
            ends.far.sendall(encode_frame(word))
        assert "no word of ours" in await ends.ended.get()
        assert await ends.frames.get() == b"good"
        assert ends.frames.empty()

    run(story)


def test_descriptors_that_nobody_takes_end_the_link() -> None:
    """A peer can't fill our table of descriptors with them."""

    async def story(ends: Ends) -> None:
        for _ in range(9):
            socket.send_fds(ends.far, [encode_frame(b"gift")], [0, 0])
        assert "no frame asks for" in await ends.ended.get()

    run(story)
