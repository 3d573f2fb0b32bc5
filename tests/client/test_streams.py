"""Copies that are only enqueued: nothing that they touch is freed, moved or given back too early.

The node and the events are made up, the threads are real. What CUDA itself does is
tests/gpu/test_client_door.py's.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings

import pytest
import torch

from aqua_client import copying, in_flight, tensors
from aqua_client.counters import Counters
from aqua_client.errors import InvalidRequest, LeaseLost
from aqua_client.fallback import AquaWarning
from aqua_client.in_flight import UNDONE_A_LOOK
from aqua_client.pager import Pager
from aqua_client.records import SafetyClass
from aqua_client.settings import ClientSettings
from aqua_client.slabs import Place, Stored
from aqua_client.tiers import Tiers
from aqua_client.worker import THREAD_NAME
from tests.client.pagers import paging, park, random_bytes, two_gpus, wait_acknowledged
from tests.fakes.session import MIB, FakeNode, is_mapped
from tests.fakes.streams import FakeEvent, FakeStreams
from tests.nodes import wait_until


def used_bytes(pager: Pager) -> int:
    """What is taken in slabs."""
    found = pager.stats()["peer_bytes"]
    assert isinstance(found, int)
    return found


def some_looks(event: FakeEvent, *, more: int = 3) -> None:
    """Until the worker has asked the event so often again, and done what it does afterwards."""
    before = len(event.asked_by)
    wait_until(lambda: len(event.asked_by) >= before + more, what="the worker looks")


def test_a_release_frees_nothing_before_the_copy_is_over() -> None:
    """The next tensor gets other bytes; then these are free, without anybody asking."""
    streams, node = FakeStreams(), FakeNode()
    with paging(node, streams=streams) as pager:
        first = park(pager, random_bytes(MIB))
        offset = first._stored.places[0].offset
        first.release()
        some_looks(streams.events[0])
        assert used_bytes(pager) == MIB
        second = park(pager, random_bytes(MIB, seed=1))
        assert second._stored.places[0].offset != offset
        streams.events[0].finish()
        wait_until(lambda: used_bytes(pager) == MIB, what="the first one's bytes are free")
        assert set(streams.events[0].asked_by) == {THREAD_NAME}
        third = park(pager, random_bytes(MIB, seed=2))
        assert third._stored.places[0].offset == offset
        streams.finish_all()


def test_a_fetch_holds_its_place_until_it_is_over() -> None:
    """Although the handle was released right after."""
    streams, node = FakeStreams(is_quick=True), FakeNode()
    with paging(node, streams=streams) as pager:
        handle = park(pager, random_bytes(MIB))
        wait_until(lambda: not pager._tiers.flights, what="written")
        streams.is_quick = False
        assert torch.equal(handle.fetch(), random_bytes(MIB))
        handle.release()
        some_looks(streams.events[-1])
        assert used_bytes(pager) == MIB
        streams.finish_all()
        wait_until(lambda: used_bytes(pager) == 0, what="free")


def test_a_fetch_comes_after_the_writing_on_whatever_stream() -> None:
    """Its stream waits for the writer's event, and not any more once that is done."""
    streams, node = FakeStreams(), FakeNode()
    with paging(node, streams=streams) as pager:
        handle = park(pager, random_bytes(MIB))
        written = streams.events[0]
        thread = threading.Thread(target=handle.fetch)
        thread.start()
        thread.join()
        assert written.waits == 1
        handle.fetch(out=torch.zeros(MIB, dtype=torch.uint8))
        assert written.waits == 2
        streams.finish_all()
        wait_until(lambda: not pager._tiers.flights, what="over")
        handle.fetch()
        assert written.waits == 2
        streams.finish_all()


@pytest.mark.parametrize("what", ["write", "read"])
def test_a_revoke_is_not_acknowledged_before_the_copies_are_over(what: str) -> None:
    """The slab stays mapped; then what it holds moves, and it is given back."""
    streams, node = FakeStreams(is_quick=what == "read"), two_gpus()
    tensor = random_bytes(3 * MIB)
    with paging(node, streams=streams) as pager:
        handle = park(pager, tensor)
        if what == "read":
            wait_until(lambda: not pager._tiers.flights, what="written")
            streams.is_quick = False
            handle.fetch()
        gpu = next(iter(node.leases.values())).gpu
        revoked = node.revoke(gpu)
        some_looks(streams.events[-1], more=8)
        assert node.acknowledged == []
        assert all(is_mapped(lease_id) for lease_id in revoked)
        streams.finish_all()
        wait_acknowledged(node, revoked)
        streams.is_quick = True
        assert torch.equal(handle.fetch(), tensor)
        assert handle.tier == "peer"


def test_cache_data_is_dropped_only_after_its_copies_are_over() -> None:
    """The bytes are of no use any more, but something still writes there."""
    streams, node = FakeStreams(), FakeNode()
    with paging(node, streams=streams) as pager:
        handle = park(pager, random_bytes(MIB), keep="cache")
        revoked = node.revoke("SHM-1")
        some_looks(streams.events[0], more=8)
        assert node.acknowledged == []
        streams.finish_all()
        wait_acknowledged(node, revoked)
        with pytest.raises(LeaseLost):
            handle.fetch()


def test_what_is_lost_while_it_is_written_stays_mapped_until_the_copy_is_over() -> None:
    """The memory has failed; unmapping it under a copy would make that worse."""
    streams, node = FakeStreams(), FakeNode()
    with paging(node, streams=streams) as pager:
        handle = park(pager, random_bytes(MIB))
        (lease_id,) = node.leases
        node.listener.leases_lost([lease_id], "keeper")
        assert handle.tier == "lost"
        some_looks(streams.events[0], more=8)
        assert is_mapped(lease_id)
        streams.finish_all()
        wait_until(lambda: not is_mapped(lease_id), what="unmapped")


@pytest.mark.parametrize("what", ["write", "read"])
def test_a_copy_that_fails_half_way_holds_its_place_too(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of it may have been enqueued."""
    streams, node = FakeStreams(is_quick=True), FakeNode()
    with paging(node, streams=streams) as pager:
        handle = park(pager, random_bytes(MIB))
        wait_until(lambda: not pager._tiers.flights, what="written")
        streams.is_quick = False

        def failing(*_: object) -> None:
            raise RuntimeError("CUDA error: out of memory")

        monkeypatch.setattr(copying, what, failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            handle.fetch() if what == "read" else park(pager, random_bytes(MIB, seed=1))
        monkeypatch.undo()
        handle.release()
        some_looks(streams.events[-1])
        assert used_bytes(pager) == MIB
        streams.finish_all()
        wait_until(lambda: used_bytes(pager) == 0, what="free")


def test_an_event_that_can_not_be_recorded_keeps_the_slab_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody can know what still happens there; the daemon quarantines it, others go on."""
    streams, node = FakeStreams(is_quick=True), two_gpus()

    def failing(*_: object) -> FakeEvent:
        raise RuntimeError("CUDA error: unspecified launch failure")

    with paging(node, streams=streams) as pager:
        monkeypatch.setattr(streams, "record", failing)
        with pytest.raises(RuntimeError, match="launch failure"):
            park(pager, random_bytes(MIB))
        monkeypatch.undo()
        (place,) = pager._tiers.flights[0].places
        handle = park(pager, random_bytes(30 * MIB))
        stuck = place.slab.lease_id if place.slab else ""
        revoked = node.revoke("SHM-1") + node.revoke("SHM-2")
        wait_acknowledged(node, tuple(one for one in revoked if one != stuck))
        assert stuck not in node.acknowledged
        assert torch.equal(handle.fetch(), random_bytes(30 * MIB))
        pager._tiers.flights[0].event = FakeEvent(is_done=True)  # so that the test can end
        wait_acknowledged(node, (stuck,))


def test_a_failed_device_is_told_once_and_hurts_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its copies are never over; another slab's revoke is served."""
    streams, node = FakeStreams(), two_gpus()
    with paging(node, streams=streams) as pager, caplog.at_level(logging.ERROR, "aqua"):
        park(pager, random_bytes(30 * MIB))
        failed_on = next(iter(node.leases.values())).gpu
        streams.events[0].fail()
        streams.is_quick = True
        other = park(pager, random_bytes(20 * MIB, seed=1))
        assert len({one.gpu for one in node.leases.values()}) == 2
        slow, quick = node.ids_on(failed_on), tuple(node.leases)
        node.revoke(failed_on)
        node.revoke("SHM-2" if failed_on == "SHM-1" else "SHM-1")
        wait_acknowledged(node, tuple(set(quick) - set(slow)))
        some_looks(streams.events[0])
        assert not set(slow) & set(node.acknowledged)
        assert torch.equal(other.fetch(), random_bytes(20 * MIB, seed=1))
        assert len([one for one in caplog.records if "illegal memory" in one.message]) == 1
        streams.events[0]._failure = ""
        streams.finish_all()


def test_closing_waits_for_copies_no_longer_than_it_may() -> None:
    """What is still being copied stays mapped and borrowed, and no goodbye is said."""
    streams, node = FakeStreams(), FakeNode()
    settings = ClientSettings(host_limit_bytes=64 * MIB, close_seconds=0.2)
    pager = Pager(settings, node.session, streams=streams)
    tensors.offload(pager, random_bytes(MIB), "store")
    (lease_id,) = node.leases
    start = time.monotonic()
    pager.close()
    assert time.monotonic() - start < 2.0
    assert is_mapped(lease_id)
    assert node.released == node.acknowledged == []
    assert not node.sessions[0].is_closed
    streams.finish_all()
    in_flight.land(pager._tiers)
    pager._tiers.slabs[lease_id].memory.close()


def test_closing_lets_copies_end() -> None:
    """It returns as soon as they have."""
    streams, node = FakeStreams(), FakeNode()
    with paging(node, streams=streams) as pager:
        park(pager, random_bytes(MIB))
        threading.Timer(0.1, streams.finish_all).start()
        start = time.monotonic()
        pager.close()
        assert time.monotonic() - start < 3.0
    assert node.still_mapped == []
    assert node.sessions[0].is_closed


def test_nothing_is_enqueued_on_a_stream_that_is_captured() -> None:
    """Nothing is reserved for it either, and afterwards all is as before."""
    streams, node = FakeStreams(is_quick=True), FakeNode()
    with paging(node, streams=streams) as pager:
        handle = park(pager, random_bytes(MIB))
        streams.is_capturing = True
        with pytest.raises(InvalidRequest, match="captured"):
            park(pager, random_bytes(MIB))
        with pytest.raises(InvalidRequest, match="captured"):
            handle.fetch()
        assert used_bytes(pager) == MIB
        assert len(streams.events) == 1
        streams.is_capturing = False
        assert torch.equal(handle.fetch(), random_bytes(MIB))


def test_an_overlapping_offload_goes_beside_the_current_stream() -> None:
    """And `wait` lets the current stream wait for it until it is over."""
    streams, node = FakeStreams(), FakeNode()
    tensor = random_bytes(MIB)
    with paging(node, streams=streams) as pager:
        beside = tensors.offload(pager, tensor, "store", overlap=True)
        assert streams.asides == [tensor]
        assert streams.recorded_aside == 1
        after = tensors.offload(pager, tensor, "store")
        assert (len(streams.asides), streams.recorded_aside) == (1, 1)
        beside.wait()
        assert (streams.events[0].waits, streams.events[1].waits) == (1, 0)
        streams.finish_all()
        wait_until(lambda: not pager._tiers.flights, what="over")
        beside.wait()
        after.wait()
        assert streams.events[0].waits == 1
        assert torch.equal(beside.fetch(), tensor)
        streams.finish_all()


def test_overlap_and_wait_are_nothing_where_copies_are_done_on_return() -> None:
    """The same program runs on tensors of the CPU."""
    with paging(FakeNode()) as pager:
        handle = tensors.offload(pager, random_bytes(MIB), "store", overlap=True)
        handle.wait()
        assert torch.equal(handle.fetch(), random_bytes(MIB))
        handle.release()
        handle.wait()


def test_room_that_became_free_a_moment_ago_is_found_before_more_is_borrowed() -> None:
    """A burst that offloads and releases does not grow with each turn."""
    streams, node = FakeStreams(), FakeNode(largest_slab_bytes=4 * MIB)
    tensor = random_bytes(4 * MIB)
    with paging(node, streams=streams) as pager:
        for _ in range(50):
            park(pager, tensor).release()
            streams.finish_all()
        assert len(node.asked) == 1


def stored_in_flight(tiers: Tiers, event: FakeEvent) -> Place:
    """A place of the host, whose writing has just been enqueued."""
    stored = Stored(16, SafetyClass.STORE)
    place = Place(copying.Memory.of_host(16), 0, 16, stored, None)
    with tiers.lock:
        tiers.host.claim(16)
        tiers.unpin([place], event)
    return place


def test_a_stream_that_is_stuck_keeps_nobody_elses() -> None:
    """However many wait there, others are asked in their turn."""
    tiers = Tiers(host_limit_bytes=MIB, counters=Counters())
    stuck = [FakeEvent() for _ in range(5 * UNDONE_A_LOOK)]
    for event in stuck:
        stored_in_flight(tiers, event)
    done = [stored_in_flight(tiers, FakeEvent(is_done=True)) for _ in range(UNDONE_A_LOOK)]
    looks = [in_flight.land(tiers) for _ in range(6)]
    assert looks.count(True) == 1
    assert [place.pins for place in done] == [0] * len(done)
    assert len(tiers.flights) == len(stuck)
    assert max(len(event.asked_by) for event in stuck) <= 2


def test_a_look_that_is_broken_off_forgets_none() -> None:
    """An interrupt may come while an event is asked."""

    class Interrupting(FakeEvent):
        def is_done(self) -> bool:
            raise KeyboardInterrupt

    tiers = Tiers(host_limit_bytes=MIB, counters=Counters())
    first = stored_in_flight(tiers, FakeEvent(is_done=True))
    stored_in_flight(tiers, Interrupting())
    stored_in_flight(tiers, FakeEvent())
    with pytest.raises(KeyboardInterrupt):
        in_flight.land(tiers)
    assert first.pins == 0
    assert len(tiers.flights) == 2


def test_a_driver_that_hangs_keeps_only_who_asked_it() -> None:
    """Another thread that looks goes on, and its own copies stay what they are."""
    asked, let_go = threading.Event(), threading.Event()

    class Hanging(FakeEvent):
        def is_done(self) -> bool:
            asked.set()
            return let_go.wait(20)

    tiers = Tiers(host_limit_bytes=MIB, counters=Counters())
    place = stored_in_flight(tiers, Hanging())
    thread = threading.Thread(target=in_flight.land, args=(tiers,))
    thread.start()
    assert asked.wait(20)
    start = time.monotonic()
    assert not in_flight.land(tiers)
    assert time.monotonic() - start < 5
    assert place.pins == 1
    let_go.set()
    thread.join()
    assert place.pins == 0


@pytest.mark.limit(90)
def test_threads_events_and_revokes_together_lose_no_byte() -> None:
    """At no time is a place free, or a slab unmapped, that a copy in flight touches."""
    streams, node = FakeStreams(), two_gpus(each_bytes=48 * MIB)
    stop, faults = threading.Event(), list[str]()

    with warnings.catch_warnings(), paging(node, streams=streams) as pager:
        warnings.simplefilter("ignore", AquaWarning)

        def work(number: int) -> None:
            turn = 0
            while not stop.is_set():
                tensor = random_bytes(300_000 + number, seed=turn)
                handle = tensors.offload(pager, tensor, "store", overlap=turn % 3 == 0)
                if not torch.equal(handle.fetch(), tensor):
                    faults.append("other bytes")
                handle.release()
                turn += 1

        def check() -> None:
            with pager._tiers.lock:
                for flight in pager._tiers.flights:
                    for place in flight.places:
                        slab = place.slab
                        if slab and (
                            place not in slab.places or slab.lease_id not in pager._tiers.slabs
                        ):
                            faults.append("given back while a copy was in flight")

        def is_acknowledged(lease_ids: tuple[str, ...]) -> bool:
            streams.finish_all()
            check()
            return set(lease_ids) <= set(node.acknowledged)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for round_ in range(60):
            wait_until(lambda: len(streams.events) > 10, what="work goes on")
            check()
            with streams.lock:
                half, streams.events = streams.events[::2], streams.events[1::2]
            for event in half:
                event.finish()
            if round_ % 12 == 0:
                gpu = "SHM-1" if round_ % 24 == 0 else "SHM-2"
                revoked = node.revoke(gpu)
                wait_until(lambda: is_acknowledged(revoked), what="acknowledged")  # noqa: B023 - waited for in this round
                node.gpu_bytes[gpu] = 48 * MIB
        stop.set()
        for thread in threads:
            thread.join()
        streams.finish_all()
        assert faults == []
