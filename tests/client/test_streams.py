"""Copies that are only enqueued: nothing that they touch is freed, moved or given back too early.

The node and the events are made up, the threads are real. What CUDA itself does is
tests/gpu/test_client_door.py's.
"""

from __future__ import annotations

import threading
import time

import pytest
import torch

from aqua_client import batches, in_flight, tensors
from aqua_client.errors import InvalidRequest, LeaseLost
from aqua_client.pager import Pager
from aqua_client.pools import BlockPool
from aqua_client.records import SafetyClass
from aqua_client.settings import ClientSettings
from aqua_client.worker import THREAD_NAME
from tests.client.flights import some_looks, used_bytes
from tests.client.pagers import paging, park, random_bytes, two_gpus, wait_acknowledged
from tests.fakes.session import MIB, FakeNode, is_mapped
from tests.fakes.streams import FakeStreams
from tests.nodes import wait_until


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


def test_what_is_parked_may_go_once_it_was_handed_over() -> None:
    """By itself, with others or as blocks: it may have been made under another stream."""
    streams, node = FakeStreams(is_quick=True), FakeNode()
    made = [random_bytes(MIB, seed=seed) for seed in range(3)]
    with paging(node, streams=streams) as pager:
        kept = [park(pager, made[0]), *batches.offload_many(pager, made[1:2], "store")]
        pool = BlockPool(pager, (MIB,), torch.uint8, SafetyClass.STORE)
        slots = pool.store(made[2].view(1, MIB), [0])
        parked = [one.data_ptr() for one in streams.handed_over]
        assert parked == [one.data_ptr() for one in made]
        assert (slots.nbytes, len(kept)) == (MIB, 2)


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
