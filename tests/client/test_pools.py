"""Blocks of a paged cache are parked and loaded by their ids, with exact bytes through revokes."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch

from aqua_client.errors import HandleReleased, InsufficientMemory, InvalidRequest, LeaseLost
from aqua_client.pager import Pager
from aqua_client.pools import BlockPool
from aqua_client.records import SafetyClass
from aqua_client.rows import Rows
from tests.client.pagers import no_daemon, paging, random_bytes, two_gpus, wait_acknowledged
from tests.fakes.session import MIB, FakeNode
from tests.fakes.streams import FakeStreams
from tests.nodes import wait_until

SHAPE = (2, 16, 8)


@pytest.fixture(params=["peer", "host"])
def pager(request: pytest.FixtureRequest) -> Iterator[Pager]:
    """On each tier."""
    with paging(two_gpus() if request.param == "peer" else no_daemon()) as made:
        yield made


def make_pool(
    pager: Pager, *, dtype: torch.dtype = torch.float32, safety: SafetyClass = SafetyClass.STORE
) -> BlockPool:
    return BlockPool(pager, SHAPE, dtype, safety)


def held(pager: Pager) -> list[object]:
    return [pager.stats()[name] for name in ("peer_bytes", "host_bytes", "offloads", "fetches")]


def test_blocks_come_back_to_other_places(pager: Pager) -> None:
    """In the order they were stored in; the others stay as they are."""
    pool = make_pool(pager)
    cache = torch.randn(20, *SHAPE)
    was = cache.clone()
    slots = pool.store(cache, [7, 0, 19, 3])
    cache[[7, 0, 19, 3]] = 0.0
    pool.load(slots, cache, [1, 2, 0, 19])
    assert torch.equal(cache[[1, 2, 0, 19]], was[[7, 0, 19, 3]])
    others = [4, 5, 6, 8, 9, 10, 18]
    assert torch.equal(cache[others], was[others])
    assert (len(slots), slots.nbytes) == (4, 4 * pool.block_nbytes)
    assert pager.stats()["offloads"] == pager.stats()["fetches"] == 1


def test_slots_are_loaded_as_often_as_one_likes_and_into_any_cache(pager: Pager) -> None:
    """Of the same blocks, until they are released."""
    pool = make_pool(pager)
    cache = torch.randn(8, *SHAPE)
    slots = pool.store(cache, torch.tensor([5, 5, 1], dtype=torch.int32))
    other = torch.zeros(3, *SHAPE)
    for _ in range(2):
        pool.load(slots, other, range(3))
        assert torch.equal(other, cache[[5, 5, 1]])
    slots.release()
    slots.release()
    with pytest.raises(HandleReleased):
        pool.load(slots, other, range(3))
    with pytest.raises(HandleReleased):
        _ = slots.tier
    assert "released" in repr(slots)


def test_no_blocks_are_stored_too(pager: Pager) -> None:
    """A request may have none."""
    pool = make_pool(pager)
    cache = torch.randn(2, *SHAPE)
    slots = pool.store(cache, [])
    pool.load(slots, cache, torch.tensor([], dtype=torch.int64))
    assert (len(slots), slots.nbytes) == (0, 0)


def test_within_inference_mode_and_with_another_default_device(pager: Pager) -> None:
    """Servers run so."""
    with torch.inference_mode():
        cache = torch.randn(4, *SHAPE)
        with torch.device("meta"):
            slots = make_pool(pager).store(cache, [3, 1])
            slots.pool.load(slots, cache, [0, 2])
        assert torch.equal(cache[[0, 2]], cache[[3, 1]])


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        ([0, 4], "blocks 0 to 3"),
        ([-1], "block id -1"),
        ([0.5], "integers"),
        ([True], "integers"),
        ([[0, 1]], "one row"),
        (["a"], "integers"),
        ([2**70], "integers"),
        (torch.tensor(2**63, dtype=torch.uint64).view(1), "not in the cache"),
    ],
    ids=str,
)
def test_ids_that_can_not_be_are_refused(
    pager: Pager, ids: list[int] | torch.Tensor, why: str
) -> None:
    """Before anything is stored or written."""
    pool = make_pool(pager)
    cache = torch.ones(4, *SHAPE)
    kept = pool.store(cache, [0])
    before = pager.stats()
    with pytest.raises(InvalidRequest, match=why):
        pool.store(cache, ids)
    with pytest.raises(InvalidRequest, match=why):
        pool.load(kept, cache, ids)
    assert pager.stats() == before
    assert torch.equal(cache, torch.ones(4, *SHAPE))


def test_a_load_that_does_not_fit_its_slots_is_refused(pager: Pager) -> None:
    """Too many ids, too few, one twice, or slots of another pool."""
    pool = make_pool(pager)
    cache = torch.ones(4, *SHAPE)
    slots = pool.store(cache, [0, 1])
    for ids, why in (([0], "1 block ids for 2"), ([0, 1, 2], "3 block"), ([3, 3], "twice")):
        with pytest.raises(InvalidRequest, match=why):
            pool.load(slots, cache, ids)
    with pytest.raises(InvalidRequest, match="another pool"):
        make_pool(pager).load(slots, cache, [0, 1])
    pool.load(slots, cache, [2, 3])


def test_shapes_that_can_not_be_are_refused(pager: Pager) -> None:
    """A block has bytes."""
    for shape in ((0, 3), (-1,), (2.5,)):
        with pytest.raises(InvalidRequest, match="block_shape"):
            BlockPool(pager, shape, torch.float32, SafetyClass.STORE)  # type: ignore[arg-type] # what it is about


def test_slots_that_are_dropped_release_their_memory(pager: Pager) -> None:
    """As handles do."""
    slots = make_pool(pager).store(torch.ones(4, *SHAPE), [0, 1])
    del slots
    gc.collect()
    wait_until(lambda: pager.stats()["releases"] == 1, what="released")
    assert pager.stats()["peer_bytes"] == pager.stats()["host_bytes"] == 0


def test_slots_say_what_they_are_and_do_not_travel(pager: Pager) -> None:
    """Their bytes are this process's leases."""
    pool = make_pool(pager)
    slots = pool.store(torch.ones(4, *SHAPE), [0, 1])
    assert repr(slots) == f"<Slots of 2 blocks, {slots.nbytes} bytes, {slots.tier}>"
    assert "torch.float32" in repr(pool)
    with pytest.raises(InvalidRequest, match="load"):
        pickle.dumps(slots)


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_a_copy_that_fails_leaves_no_pin_and_no_byte(
    pager: Pager, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException]
) -> None:
    """Neither going out nor coming in; the slots work afterwards."""

    def fail(*_: object) -> None:
        raise fault("no copy")

    pool = make_pool(pager)
    cache = torch.randn(4, *SHAPE)
    slots = pool.store(cache, [0, 1])
    before = held(pager)
    with monkeypatch.context() as patch:
        patch.setattr(Rows, "write", fail)
        patch.setattr(Rows, "read", fail)
        with pytest.raises(fault, match="no copy"):
            pool.store(cache, [2])
        with pytest.raises(fault, match="no copy"):
            pool.load(slots, cache, [2, 3])
    assert held(pager) == before
    pool.load(slots, cache, [2, 3])
    assert torch.equal(cache[2:], cache[:2])


def test_blocks_lie_across_slabs_and_the_host() -> None:
    """Where a slab ends inside a block, the rest of it is in the next place."""
    node = FakeNode(gpu_bytes={"SHM-1": 8 * MIB}, largest_slab_bytes=4 * MIB)
    shape = (3, 100_000)  # 300,000 bytes: no slab is a multiple of it
    cache = random_bytes(40 * 300_000).view(40, *shape)
    with paging(node) as pager:
        pool = BlockPool(pager, shape, torch.uint8, SafetyClass.STORE)
        ids = torch.randperm(40)
        slots = pool.store(cache, ids)
        assert (slots.tier, slots.reason) == ("mixed", "no_room")
        assert len(slots._stored.places) == 3
        again = torch.zeros_like(cache)
        pool.load(slots, again, ids)
        assert torch.equal(again, cache)


def test_nowhere_room_stores_nothing() -> None:
    """The cache is as it was."""
    with paging(no_daemon(), host_limit_bytes=1000) as pager:
        with pytest.raises(InsufficientMemory):
            make_pool(pager).store(torch.ones(4, *SHAPE), [0, 1, 2])
        assert pager.stats()["host_bytes"] == 0


def test_a_revoke_moves_blocks_and_loses_none() -> None:
    """To another GPU first, then to the host."""
    node = two_gpus()
    cache = torch.randn(500, *SHAPE)
    ids = torch.randperm(500)[:300]
    with paging(node) as pager:
        pool = make_pool(pager)
        slots = pool.store(cache, ids)
        for gpu in ("SHM-1", "SHM-2"):
            wait_acknowledged(node, node.revoke(gpu))
            again = torch.zeros(300, *SHAPE)
            pool.load(slots, again, range(300))
            assert torch.equal(again, cache[ids])
        assert (slots.tier, slots.reason) == ("host", "reclaim")


def test_cache_blocks_are_dropped_by_a_revoke() -> None:
    """Loading them says so and writes nothing."""
    node = FakeNode()
    cache = torch.ones(4, *SHAPE)
    with paging(node) as pager:
        pool = make_pool(pager, safety=SafetyClass.CACHE)
        slots = pool.store(cache, [0, 1])
        wait_acknowledged(node, node.revoke("SHM-1"))
        with pytest.raises(LeaseLost, match="cache"):
            pool.load(slots, cache.zero_(), [0, 1])
        assert slots.tier == "lost"
        assert not cache.any()


def test_a_revoke_waits_for_a_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read stays where it is."""
    node = FakeNode()
    with paging(node) as pager:
        pool = make_pool(pager)
        cache = torch.randn(4, *SHAPE)
        slots = pool.store(cache, [0, 1])
        asked: list[tuple[str, ...]] = []
        read: Callable[..., None] = Rows.read

        def revoke_meanwhile(rows: Rows, *what: object) -> None:
            asked.append(node.revoke("SHM-1"))
            read(rows, *what)
            assert node.acknowledged == []

        monkeypatch.setattr(Rows, "read", revoke_meanwhile)
        pool.load(slots, cache, [2, 3])
        wait_acknowledged(node, asked[0])
        assert torch.equal(cache[2:], cache[:2])


def test_enqueued_copies_hold_their_places() -> None:
    """A store and a load, until their events are done; a load comes after the store's."""
    streams, node = FakeStreams(), FakeNode()
    with paging(node, streams=streams) as pager:
        pool = make_pool(pager)
        cache = torch.randn(4, *SHAPE)
        slots = pool.store(cache, [0, 1])
        nbytes = slots.nbytes
        pool.load(slots, cache, [2, 3])
        stored, loaded = streams.events
        assert stored.waits == 1
        slots.release()
        stored.finish()
        wait_until(lambda: stored.asked_by and len(loaded.asked_by) > 3, what="the worker looks")
        assert pager.stats()["peer_bytes"] == nbytes
        loaded.finish()
        wait_until(lambda: pager.stats()["peer_bytes"] == 0, what="free")
        assert torch.equal(cache[2:], cache[:2])


def test_copies_that_fail_half_way_hold_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of them may have been enqueued."""

    def fail(*_: object) -> None:
        raise RuntimeError("no copy")

    streams, node = FakeStreams(), FakeNode()
    with paging(node, streams=streams) as pager:
        monkeypatch.setattr(Rows, "write", fail)
        with pytest.raises(RuntimeError, match="no copy"):
            make_pool(pager).store(torch.ones(4, *SHAPE), [0, 1])
        assert len(streams.events) == len(pager._tiers.flights) == 1
        assert pager._tiers.slabs
        used = [slab.extents.used_bytes for slab in pager._tiers.slabs.values()]
        assert used == [2 * 1024]
        streams.finish_all()
        wait_until(lambda: not pager._tiers.flights, what="over")
        assert not any(slab.extents.used_bytes for slab in pager._tiers.slabs.values())


def test_nothing_is_copied_on_a_stream_that_is_being_captured() -> None:
    """A graph would replay it."""
    streams, node = FakeStreams(is_quick=True), FakeNode()
    with paging(node, streams=streams) as pager:
        pool = make_pool(pager)
        cache = torch.ones(4, *SHAPE)
        slots = pool.store(cache, [0])
        streams.is_capturing = True
        for use in (lambda: pool.store(cache, [0]), lambda: pool.load(slots, cache, [0])):
            with pytest.raises(InvalidRequest, match="captured"):
                use()
        assert len(streams.events) == 1
