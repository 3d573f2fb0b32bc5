"""The proofs of a client's death, with real processes, pidfds and sentinels."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aqua_daemon.adapters.holders import Holders
from aqua_daemon.core.events import Event, ProcessEnded, SentinelEnded
from aqua_daemon.core.model import SessionId

SESSION = SessionId("5e" * 16)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until its standard input ends, or it is killed."""
    with waiting_process() as child:
        yield child
        child.kill()


def waiting_process() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )


class Watch:
    """Holders on a running loop, with what they reported."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.holders = Holders(asyncio.get_running_loop(), self.events.append)

    def add(self, pid: int, session_id: SessionId = SESSION) -> socket.socket:
        """A session of that process; its end of the sentinel."""
        ours, theirs = socket.socketpair()
        self.holders.add(session_id, pidfd=os.pidfd_open(pid), sentinel=ours.detach())
        return theirs

    async def until(self, *expected: Event) -> None:
        async with asyncio.timeout(10.0):
            while len(self.events) < len(expected):  # noqa: ASYNC110 - others append to it
                await asyncio.sleep(0.002)
        assert self.events == list(expected)


async def loop_turns() -> None:
    """Let the loop see everything that is ready; what has not come by then was not on its way."""
    for _ in range(20):
        await asyncio.sleep(0)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_killed_process_is_told_once_and_its_sentinel_apart(
    process: subprocess.Popen[bytes],
) -> None:
    """The pidfd fires at the kill, the sentinel only when its last holder closes it."""

    async def story() -> None:
        watch = Watch()
        theirs = watch.add(process.pid)
        heirs = theirs.dup()
        process.kill()
        await watch.until(ProcessEnded(session_id=SESSION))
        theirs.close()
        await asyncio.sleep(0)
        assert len(watch.events) == 1
        heirs.close()
        await watch.until(ProcessEnded(session_id=SESSION), SentinelEnded(session_id=SESSION))
        watch.holders.close()

    asyncio.run(story())


def test_descriptors_stay_the_holders_own(process: subprocess.Popen[bytes]) -> None:
    """A keeper is handed the very pidfd and sentinel; an unknown session has none."""

    async def story() -> None:
        watch = Watch()
        with watch.add(process.pid):
            pidfd, sentinel = watch.holders.descriptors(SESSION)
            assert os.fstat(pidfd)
            assert os.fstat(sentinel)
            assert watch.holders.knows(SESSION)
            assert watch.holders.are_of(SESSION, pidfd)
            ours = os.pidfd_open(os.getpid())
            assert not watch.holders.are_of(SESSION, ours)
            assert watch.holders.are_of(SessionId("00" * 16), ours)
            os.close(ours)
            with pytest.raises(KeyError):
                watch.holders.descriptors(SessionId("00" * 16))
        watch.holders.close()

    asyncio.run(story())


def test_proofs_that_come_again_are_closed(process: subprocess.Popen[bytes]) -> None:
    """A keeper that is linked again sends the same proofs: nothing changes, nothing leaks."""

    async def story() -> None:
        watch = Watch()
        theirs = watch.add(process.pid)
        before = open_descriptors()
        pidfd, sentinel = watch.holders.descriptors(SESSION)
        for _ in range(3):
            watch.holders.add(SESSION, pidfd=os.dup(pidfd), sentinel=os.dup(sentinel))
        assert open_descriptors() == before
        theirs.close()
        await watch.until(SentinelEnded(session_id=SESSION))
        watch.holders.close()

    asyncio.run(story())


def test_a_second_sentinel_of_the_same_process_counts_as_well(
    process: subprocess.Popen[bytes],
) -> None:
    """Children forked before a re-attach hold the first sentinel: both must end."""

    async def story() -> None:
        watch = Watch()
        first = watch.add(process.pid)
        second = watch.add(process.pid)
        first.close()
        await loop_turns()
        assert watch.events == []
        second.close()
        await watch.until(SentinelEnded(session_id=SESSION))
        watch.holders.close()

    asyncio.run(story())


def test_proofs_of_another_process_wait_until_the_first_is_forgotten(
    process: subprocess.Popen[bytes],
) -> None:
    """A process that took a session's id leaves it to the one that the keeper names."""

    async def story() -> None:
        before = open_descriptors()
        with waiting_process() as owner:
            watch = Watch()
            taken = watch.add(process.pid)
            owned = watch.add(owner.pid)
            taken.close()
            await watch.until(SentinelEnded(session_id=SESSION))
            watch.events.clear()
            watch.holders.forget(SESSION)
            assert watch.holders.knows(SESSION)
            owner.kill()
            await watch.until(ProcessEnded(session_id=SESSION))
            owned.close()
            await watch.until(ProcessEnded(session_id=SESSION), SentinelEnded(session_id=SESSION))
            watch.holders.forget(SESSION)
            assert not watch.holders.knows(SESSION)
            watch.holders.close()
        assert open_descriptors() == before

    asyncio.run(story())


def test_a_client_that_writes_into_its_sentinel_proves_nothing(
    process: subprocess.Popen[bytes],
) -> None:
    """Bytes are thrown away now and then; only the end counts."""

    async def story() -> None:
        watch = Watch()
        theirs = watch.add(process.pid)
        theirs.sendall(b"x" * 1000)
        await loop_turns()
        assert watch.events == []
        theirs.close()
        await watch.until(SentinelEnded(session_id=SESSION))
        watch.holders.close()

    asyncio.run(story())


def test_what_is_forgotten_is_closed_and_never_reported(
    process: subprocess.Popen[bytes],
) -> None:
    """`forget` and `close` give every descriptor back, and may be called twice."""

    async def story() -> None:
        watch = Watch()
        with watch.add(process.pid) as theirs:
            before = open_descriptors()
            theirs.sendall(b"x")  # a look is due, which must find nobody
            await loop_turns()
            watch.holders.forget(SESSION)
            watch.holders.forget(SESSION)
            assert open_descriptors() == before - 2
        process.kill()
        process.wait()
        await loop_turns()
        watch.holders._look_again(SESSION, 0)  # as the timer does
        assert watch.events == []
        watch.holders.close()
        watch.holders.close()

    asyncio.run(story())
