"""Out of memory: lent memory comes back, and what failed runs once more."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from aqua_protos import broker_pb2

from aqua_client import out_of_memory
from aqua_client.errors import InvalidRequest
from aqua_client.out_of_memory import LEAST_BYTES, ReclaimOnOom, missing_bytes, reclaim_on_oom
from aqua_client.producing import Producer, producer
from aqua_client.records import ReclaimResult
from aqua_client.settings import ClientSettings
from tests.fakes.broker_books import MIB
from tests.fakes.broker_server import FakeDaemon
from tests.nodes import wait_until

GIB = 2**30
MESSAGE = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB"


class PoolFull(Exception):
    """What an allocator raises that is not torch's."""


@pytest.fixture
def guard(daemon: FakeDaemon, settings: ClientSettings) -> Iterator[ReclaimOnOom]:
    """A guard of SHM-1 at a daemon that frees what it is asked for."""
    assert daemon.path == settings.socket_path
    made = reclaim_on_oom("SHM-1", 1.5, errors=(PoolFull,), settings=settings)
    yield made
    made.close()


def reclaims(daemon: FakeDaemon) -> list[tuple[int, float]]:
    return [
        (call.nbytes, call.deadline_seconds)
        for _, call in daemon.calls
        if isinstance(call, broker_pb2.ReclaimRequest)
    ]


def failing(*errors: Exception | None) -> Callable[[int], int]:
    """A function that raises these one after the other, then returns its argument's double."""
    script = list(errors)

    def function(number: int) -> int:
        error = script.pop(0) if script else None
        if error is not None:
            raise error
        return 2 * number

    return function


def test_what_runs_out_of_memory_runs_again(guard: ReclaimOnOom, daemon: FakeDaemon) -> None:
    """Once lent memory is back; what does not fail talks to nobody."""
    assert guard.run(failing(), 4) == 8
    assert daemon.hellos == []
    assert guard.run(failing(PoolFull(MESSAGE)), 4) == 8
    assert reclaims(daemon) == [(LEAST_BYTES, 1.5)]

    @guard
    def doubled(number: int) -> int:
        """Its own words."""
        return once(number)

    once = failing(PoolFull("Tried to allocate 3.00 GiB."))
    assert doubled(5) == 10
    assert doubled.__doc__ == "Its own words."
    assert reclaims(daemon)[1] == (missing_bytes(PoolFull("Tried to allocate 3.00 GiB.")), 1.5)


def test_it_runs_again_once(guard: ReclaimOnOom, daemon: FakeDaemon) -> None:
    """Then the first error is raised, which says what was done."""
    first = PoolFull("first")
    with pytest.raises(PoolFull) as caught:
        guard.run(failing(first, PoolFull("second")), 1)
    assert caught.value is first
    notes = first.__notes__
    assert notes[0].startswith(f"{GIB} bytes were reclaimed (partial)")
    assert "second time" in notes[1]
    assert len(reclaims(daemon)) == 1


def test_threads_that_run_out_at_once_take_back_what_both_lack(
    guard: ReclaimOnOom, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other: a reclaim counts what is on its way for another as its own."""
    spans: list[tuple[float, float]] = []
    reclaim = Producer.reclaim

    def slow(self: Producer, nbytes: int, deadline: float) -> ReclaimResult:
        began_at = time.monotonic()
        result = reclaim(self, nbytes, deadline)
        time.sleep(0.2)
        spans.append((began_at, time.monotonic()))
        return result

    monkeypatch.setattr(Producer, "reclaim", slow)
    with ThreadPoolExecutor(2) as pool:
        tried = [pool.submit(guard.run, failing(PoolFull()), number) for number in (1, 2)]
        assert [one.result() for one in tried] == [2, 4]
    (_, first_ended_at), (second_began_at, _) = sorted(spans)
    assert second_began_at >= first_ended_at
    assert len(reclaims(daemon)) == 2


def test_a_turn_that_never_comes_is_not_waited_for_longer(
    guard: ReclaimOnOom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a child that was forked while a thread of its parent's had it."""
    taken = threading.Lock()
    taken.acquire()
    monkeypatch.setattr(out_of_memory, "_TURN", taken)
    began_at = time.monotonic()
    assert guard.run(failing(PoolFull()), 3) == 6
    assert 1.5 <= time.monotonic() - began_at < 15.0
    assert taken.locked()


def test_another_error_is_raised_as_it_is(guard: ReclaimOnOom, daemon: FakeDaemon) -> None:
    """At the first attempt nothing is asked of anybody, at the second it is the news."""
    with pytest.raises(ZeroDivisionError):
        guard.run(failing(ZeroDivisionError()), 1)
    assert daemon.hellos == []
    with pytest.raises(ZeroDivisionError):
        guard.run(failing(PoolFull(), ZeroDivisionError()), 1)


def test_where_nothing_came_back_nothing_runs_again(
    guard: ReclaimOnOom, daemon: FakeDaemon
) -> None:
    """It would fail again."""
    daemon.reclaimed = broker_pb2.ReclaimReply(asked_bytes=GIB)
    calls: list[int] = []

    def function() -> None:
        calls.append(1)
        raise PoolFull

    with pytest.raises(PoolFull) as caught:
        guard.run(function)
    assert calls == [1]
    assert caught.value.__notes__ == ["0 bytes were reclaimed (nothing_lent)"]


def test_without_a_daemon_the_error_comes_soon(settings: ClientSettings) -> None:
    """Its own, with a note; an engine is never worse off."""
    quick = replace(settings, connect_seconds=0.1)
    guard = reclaim_on_oom("SHM-1", errors=(PoolFull,), settings=quick)
    started_at = time.monotonic()
    with pytest.raises(PoolFull) as caught:
        guard.run(failing(PoolFull()), 1)
    assert time.monotonic() - started_at < 5.0
    assert "no_daemon" in caught.value.__notes__[0]
    wrong = reclaim_on_oom("cpu", errors=(PoolFull,), settings=quick)
    with pytest.raises(PoolFull) as caught:
        wrong.run(failing(PoolFull()), 1)
    assert "names no GPU" in caught.value.__notes__[0]


class Tensor:
    """Something that a failed attempt has made."""


def test_what_the_failed_attempt_held_is_let_go_before(guard: ReclaimOnOom) -> None:
    """Else it would be missing in the second, however much came back."""
    held: list[weakref.ref[Tensor]] = []

    def inner() -> None:
        kept = Tensor()
        held.append(weakref.ref(kept))
        if len(held) <= 2:
            raise PoolFull

    def function() -> list[bool]:
        kept = Tensor()
        alive = [one() is not None for one in held]
        held.append(weakref.ref(kept))
        try:
            inner()
        except PoolFull as error:
            raise PoolFull from error
        return alive

    assert guard.run(function) == [False, False]


def test_torchs_own_error_and_cache(guard: ReclaimOnOom, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache goes to the driver, or what came back would not be missing there."""
    emptied: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    assert guard.run(failing(torch.OutOfMemoryError(MESSAGE)), 3) == 6
    assert emptied == [1]
    with pytest.raises(MemoryError):  # Python's: no GPU is short of anything
        guard.run(failing(MemoryError()), 3)


def test_a_block_is_not_run_again(guard: ReclaimOnOom, daemon: FakeDaemon) -> None:
    """Memory comes back, the error goes on and says so, and other errors pass."""
    with pytest.raises(PoolFull) as caught, guard:
        raise PoolFull(MESSAGE)
    assert "were reclaimed" in caught.value.__notes__[0]
    assert len(reclaims(daemon)) == 1
    with pytest.raises(ZeroDivisionError), guard:
        raise ZeroDivisionError
    with guard as entered:
        assert entered is guard
    assert len(reclaims(daemon)) == 1


def test_what_came_back_is_held_until_the_guard_is_closed(
    guard: ReclaimOnOom, daemon: FakeDaemon
) -> None:
    """One session for all of its reclaims, which ends by itself after a while."""
    guard.run(failing(PoolFull()), 1)
    guard.run(failing(PoolFull()), 1)
    assert len(daemon.hellos) == 1
    assert daemon.goodbyes == []
    guard.close()
    wait_until(lambda: daemon.goodbyes, what="the session ends")
    guard.close()


def test_a_producer_of_ones_own_is_used(daemon: FakeDaemon, settings: ClientSettings) -> None:
    """And left open."""
    with producer("SHM-1", settings=settings) as mine:
        guard = reclaim_on_oom(mine, errors=(PoolFull,), least_bytes=MIB)
        assert guard.run(failing(PoolFull(MESSAGE)), 1) == 2
        guard.close()
        assert mine.stats()["reclaims"] == 1
        assert reclaims(daemon)[0][0] == missing_bytes(PoolFull(MESSAGE))
        assert mine.lend(MIB).offered_bytes == MIB


def test_what_runs_later_can_not_be_guarded(guard: ReclaimOnOom) -> None:
    """A coroutine or a generator has only begun when the call returns."""

    async def coroutine() -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    for function in (coroutine, generator):
        with pytest.raises(InvalidRequest, match="after it was called"):
            guard(function)


@pytest.mark.parametrize("deadline", [0.0, -1.0, float("nan"), float("inf")])
def test_what_can_not_be_is_refused_at_once(deadline: float) -> None:
    """Not at the first time without memory."""
    with pytest.raises(InvalidRequest, match="deadline"):
        reclaim_on_oom("SHM-1", deadline)
    with pytest.raises(InvalidRequest, match="least_bytes"):
        reclaim_on_oom("SHM-1", least_bytes=0)


@pytest.mark.parametrize(
    ("message", "least", "most"),
    [
        (MESSAGE, 20 * MIB, 22 * MIB),
        ("Tried to allocate 512 bytes", 512, 2 * MIB),
        ("Tried to allocate 2.00 KiB", 2048, 2 * MIB),
        ("Tried to allocate 1.17 GiB", int(1.175 * GIB), int(1.175 * GIB) + 2 * MIB),
        ("no room", 0, 0),
        ("Tried to allocate much", 0, 0),
    ],
)
def test_what_was_missing_is_in_the_message(message: str, least: int, most: int) -> None:
    """As much as it may have been before it was rounded."""
    assert least <= missing_bytes(RuntimeError(message)) <= most
