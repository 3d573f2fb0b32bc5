"""A caller reads its own answer; what is of no call goes to the session's thread, at once."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from aqua_protos.framing import encode_frame, send_frame

from aqua_client.link import Waker
from aqua_client.reading import LinkBroken, Reading
from tests.client.test_interrupts import interrupted
from tests.nodes import wait_until

ANSWER, PUSH = b"answer", b"push"
LONG_SECONDS = 30.0


class Bench:
    """One reading, what its callers have heard, and the daemon's end of the connection."""

    def __init__(self) -> None:
        self.daemon, ours = socket.socketpair()
        self.waker = Waker()
        self.heard: list[bytes] = []
        self.readers: list[int] = []  # which thread heard it
        self.fails: BaseException | None = None
        self.take: Callable[[], None] = lambda: None
        self.reading = Reading(ours, self.waker, self._hear)
        self.pool = ThreadPoolExecutor(4)

    def push(self, *payloads: bytes) -> None:
        self.daemon.sendall(b"".join(map(encode_frame, payloads)))

    def lead(self, send: Callable[[], None]) -> None:
        """A call that ends with the next answer."""
        has_heard = len(self.heard)
        self.reading.lead(
            send,
            is_over=lambda: len(self.heard) > has_heard,
            deadline=time.monotonic() + LONG_SECONDS,
        )

    def leading(self) -> Future[None]:
        """One in another thread that has gone out when this returns."""
        sent = threading.Event()
        calling = self.pool.submit(self.lead, sent.set)
        assert sent.wait(10.0)
        return calling

    def next_payload(self, seconds: float = LONG_SECONDS) -> bytes | None:
        return self.reading.next_payload(deadline=time.monotonic() + seconds)

    def close(self) -> None:
        self.reading.close()
        self.waker.close()
        self.daemon.close()
        self.pool.shutdown()

    def _hear(self, payload: bytes) -> bool:
        if self.fails is not None:
            raise self.fails
        if payload == ANSWER:
            self.take()
            self.heard.append(payload)
            self.readers.append(threading.get_ident())
        return payload == ANSWER


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def test_a_caller_reads_its_own_answer(bench: Bench) -> None:
    """The session's thread sleeps on, and is woken by the next push."""
    waiting = bench.pool.submit(bench.next_payload)
    for _ in range(100):
        bench.lead(lambda: bench.push(ANSWER))
    assert bench.readers == [threading.get_ident()] * 100
    assert not waiting.done()
    bench.push(PUSH)
    assert waiting.result(10.0) == PUSH


def test_a_push_does_not_wait_for_the_end_of_a_call(bench: Bench) -> None:
    """A caller that waits for its answer leaves it to the session's thread, in order, once."""
    waiting = bench.pool.submit(bench.next_payload)
    calling = bench.leading()
    bench.push(PUSH, b"another")
    assert waiting.result(10.0) == PUSH
    assert bench.next_payload() == b"another"
    assert not calling.done()
    assert bench.next_payload(0.01) is None
    bench.push(ANSWER)
    calling.result(10.0)
    assert bench.heard == [ANSWER]


def test_the_session_wakes_in_time_while_a_caller_reads(bench: Bench) -> None:
    """Keepalives go out however long a call takes; and it is woken to stop."""
    calling = bench.leading()
    assert bench.next_payload(0.01) is None
    bench.waker.wake()
    assert bench.next_payload() is None
    bench.push(ANSWER)
    calling.result(10.0)


def test_one_reads_for_all(bench: Bench) -> None:
    """Who finds another reading has its call sent, and goes to wait elsewhere."""
    first = bench.leading()
    sent: list[int] = []
    bench.lead(lambda: sent.append(1))
    assert sent == [1]
    assert not first.done()
    bench.push(ANSWER)
    first.result(10.0)


def test_a_call_ends_by_its_deadline(bench: Bench) -> None:
    """And the session's thread reads again: it hears a late answer."""
    bench.reading.lead(lambda: None, is_over=lambda: False, deadline=time.monotonic() + 0.01)
    bench.push(ANSWER, PUSH)
    assert bench.pool.submit(bench.next_payload).result(10.0) == PUSH
    assert bench.heard == [ANSWER]
    assert bench.readers != [threading.get_ident()]


def test_an_end_is_told_to_caller_and_session(bench: Bench) -> None:
    """Whichever reads it first."""
    waiting = bench.pool.submit(bench.next_payload)
    calling = bench.leading()
    bench.daemon.shutdown(socket.SHUT_RDWR)
    for one in (calling, waiting):
        with pytest.raises(LinkBroken) as caught:
            one.result(10.0)
        assert caught.value.reason == "lost"


def test_closing_ends_a_call_that_reads(bench: Bench) -> None:
    """At once, and it finds no other file under the connection's number."""
    calling = bench.leading()
    bench.reading.close()
    with pytest.raises(LinkBroken):
        calling.result(10.0)


def test_an_interrupt_while_a_caller_reads_ends_the_link(bench: Bench) -> None:
    """What it had read is lost, and frames after it could mean anything."""
    bench.fails = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        bench.lead(lambda: bench.push(ANSWER))
    with pytest.raises(LinkBroken) as caught:
        bench.next_payload()
    assert caught.value.reason == "lost"
    wait_until(lambda: bench.daemon.recv(1) == b"", what="the daemon is told")


def test_a_fault_in_hearing_is_no_error_of_the_caller_s(bench: Bench) -> None:
    """It may be another's answer: the link ends, and the caller does without the daemon."""
    bench.fails = AttributeError("of another's")
    with pytest.raises(LinkBroken) as caught:
        bench.lead(lambda: bench.push(ANSWER))
    assert caught.value.reason == "internal"
    with pytest.raises(LinkBroken):
        bench.next_payload()


def test_a_frame_that_is_none_ends_both(bench: Bench) -> None:
    """With the same reason, whoever has read it."""
    waiting = bench.pool.submit(bench.next_payload)
    calling = bench.leading()
    bench.daemon.sendall(b"\xff" * 8)
    for one in (calling, waiting):
        with pytest.raises(LinkBroken) as caught:
            one.result(10.0)
        assert caught.value.reason == "bad_frame"


def test_descriptors_go_with_their_frames_whoever_reads(bench: Bench) -> None:
    """The session's thread takes those of what it has read before a caller reads more."""
    first, second = os.pipe()
    taken: list[int] = []
    bench.take = lambda: taken.extend(bench.reading.take_descriptors(1))
    send_frame(bench.daemon, ANSWER, [first])
    assert bench.next_payload(0.1) is None
    bench.lead(lambda: send_frame(bench.daemon, ANSWER, [second]))
    try:
        assert [os.fstat(one) for one in taken] == [os.fstat(first), os.fstat(second)]
        assert len(bench.readers) == 2
    finally:
        for one in (*taken, first, second):
            os.close(one)


def test_keepalives_go_out_however_much_comes_for_callers(bench: Bench) -> None:
    """What comes without a pause does not keep the session's thread beyond its deadline."""
    bench.take = lambda: bench.push(ANSWER)
    bench.push(ANSWER)
    assert bench.next_payload(0.05) is None
    assert len(bench.heard) > 1


def test_an_interrupt_at_any_step_leaves_the_turn_free_or_ends_the_link() -> None:
    """Nobody is kept from reading by a caller that is there no more."""
    for step in itertools.count(1):
        one = Bench()
        call = functools.partial(one.lead, functools.partial(one.push, ANSWER))
        try:
            is_early = interrupted(call, at=step)
            with contextlib.suppress(LinkBroken, BrokenPipeError):
                one.push(ANSWER, PUSH)
                assert one.next_payload(10.0) == PUSH, step
            with contextlib.suppress(LinkBroken, BrokenPipeError):
                call()
                assert one.readers[-1] == threading.get_ident(), step
        finally:
            one.close()
        if not is_early:
            return
