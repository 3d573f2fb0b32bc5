"""Leases that are asked back: what they hold moves, or is dropped, and only then they are given.

Every case runs with real mappings; `paging` fails when a slab was still mapped as it went back.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

import pytest
import torch

from aqua_client import copying, slabs
from aqua_client.copying import Memory, Span
from aqua_client.errors import LeaseLost
from aqua_client.pager import Pager
from aqua_client.records import Grant, RevokeNotice
from tests.client.pagers import paging, park, random_bytes, two_gpus, wait_acknowledged
from tests.fakes.session import MIB, FakeNode
from tests.nodes import wait_until


def test_store_data_moves_to_another_gpu() -> None:
    """It stays readable all the time, and is in leased memory afterwards."""
    node = two_gpus()
    tensors = [random_bytes(700 * 1024, seed=seed) for seed in range(12)]
    with paging(node) as pager:
        handles = [park(pager, tensor) for tensor in tensors]
        revoked = node.revoke("SHM-1")
        wait_acknowledged(node, revoked)
        assert node.ids_on("SHM-1") == ()
        assert {handle.tier for handle in handles} == {"peer"}
        assert all(torch.equal(h.fetch(), t) for h, t in zip(handles, tensors, strict=True))
        assert pager.stats()["revokes_served"] == len(revoked)


def test_store_data_moves_to_the_host_where_no_gpu_has_room() -> None:
    """Its room was reserved with the grant, and is stated as the slab goes back."""
    node = FakeNode(host_pool_bytes=0)
    tensor = random_bytes(3 * MIB)
    with paging(node, host_limit_bytes=0) as pager:
        handle = park(pager, tensor)
        wait_acknowledged(node, node.revoke("SHM-1"))
        assert (handle.tier, handle.reason) == ("host", "reclaim")
        assert torch.equal(handle.fetch(), tensor)
        assert node.returned[-1].room.nbytes == 3 * MIB
        assert pager.stats()["evacuated_bytes"] == 3 * MIB
        assert pager.stats()["fallbacks"] == {}
        handle.release()
        assert node.listener.host_room().nbytes == 0


def test_what_was_moved_lately_goes_to_the_host() -> None:
    """A piece is not chased from GPU to GPU."""
    node = two_gpus()
    tensor = random_bytes(MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        first = next(iter(node.leases.values())).gpu
        second = "SHM-2" if first == "SHM-1" else "SHM-1"
        wait_acknowledged(node, node.revoke(first))
        assert handle.tier == "peer"
        node.gpu_bytes[first] = 64 * MIB
        wait_acknowledged(node, node.revoke(second))
        assert handle.tier == "host"
        assert torch.equal(handle.fetch(), tensor)


def test_cache_data_is_dropped() -> None:
    """Its fetch says so; a piece elsewhere of the same tensor goes too."""
    node = two_gpus()
    with paging(node) as pager:
        handle = park(pager, random_bytes(40 * MIB), keep="cache")
        assert len({one.gpu for one in node.leases.values()}) == 2
        wait_acknowledged(node, node.revoke("SHM-1"))
        assert handle.tier == "lost"
        with pytest.raises(LeaseLost, match="reclaim"):
            handle.fetch()
        assert pager.stats()["peer_bytes"] == 0
        assert pager.stats()["host_bytes"] == 0
        assert pager.stats()["evacuated_bytes"] == 0
        handle.release()


def test_an_empty_slab_goes_back_at_once() -> None:
    """There is nothing to move."""
    node = FakeNode()
    with paging(node) as pager:
        park(pager, random_bytes(1000)).release()
        wait_acknowledged(node, node.revoke("SHM-1"))
        assert node.room.nbytes == 0


def test_what_needs_no_copy_is_acknowledged_first_and_in_one_call() -> None:
    """An owner waits for all of it: not a call for each slab, nor for copies that others need."""
    node = FakeNode()
    with paging(node) as pager:
        dropped = [park(pager, random_bytes(MIB, seed=seed), keep="cache") for seed in range(8)]
        cached = set(node.leases)
        moved = park(pager, random_bytes(MIB))
        wait_acknowledged(node, node.revoke("SHM-1"))
        calls = [call.lease_ids for call in node.returned if call.how == "acknowledged"]
        assert len(cached) > 1
        assert set(calls[0]) == cached
        assert [*calls[1]] == [*(set(node.acknowledged) - cached)]
        assert {handle.tier for handle in dropped} == {"lost"}
        assert moved.tier == "host"


def test_unknown_leases_are_acknowledged_at_once_again_and_again() -> None:
    """A revoke is repeated until it is answered; the answer may have been lost."""
    node = FakeNode()
    with paging(node):
        for _ in range(3):
            node.revoke("SHM-1", ["0" * 32, "1" * 32])
        wait_until(lambda: node.acknowledged.count("1" * 32) >= 1, what="acknowledged")
        assert set(node.acknowledged) == {"0" * 32, "1" * 32}


def test_a_repeated_revoke_is_acknowledged_after_the_first() -> None:
    """One that arrives while the slab is being emptied, and one that arrives after."""
    node = two_gpus()
    tensor = random_bytes(3 * MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        gpu = next(iter(node.leases.values())).gpu
        revoked = node.revoke(gpu)
        node.revoke(gpu, revoked)
        wait_acknowledged(node, revoked)
        node.revoke(gpu, revoked)
        wait_until(lambda: node.acknowledged.count(revoked[0]) >= 2, what="again")
        assert torch.equal(handle.fetch(), tensor)


def test_a_revoke_that_overtakes_its_grant_wins() -> None:
    """The slab is unmapped again, and the offload goes elsewhere."""
    node = FakeNode()
    node.answers.clear()
    parked = []
    with paging(node) as pager:
        thread = threading.Thread(target=lambda: parked.append(park(pager, random_bytes(1000))))
        thread.start()
        wait_until(lambda: node.leases, what="a lease is granted")
        wait_acknowledged(node, node.revoke("SHM-1"))
        node.answers.set()
        thread.join()
        assert (parked[0].tier, parked[0].reason) == ("host", "revoked")
        assert pager.stats()["leases"] == {}
        assert torch.equal(parked[0].fetch(), random_bytes(1000))


def test_a_slab_that_is_just_being_mapped_is_acknowledged_once_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A revoke that comes while a granted slab is mapped waits for the unmapping."""
    node = FakeNode()
    acknowledged_while_mapped: list[str] = []

    def mapped_and_revoked(grant: Grant, *, home_gpu: str | None = None) -> Memory:
        memory = open_slab(grant, home_gpu=home_gpu)
        node.revoke("SHM-1")
        wait_until(lambda: grant.lease_id in pager._arriving._disowned, what="the worker knows")
        acknowledged_while_mapped.extend(node.acknowledged)
        return memory

    open_slab = Memory.of_grant
    monkeypatch.setattr(Memory, "of_grant", mapped_and_revoked)
    with paging(node) as pager:
        handle = park(pager, random_bytes(1000))
        assert (handle.tier, handle.reason) == ("host", "revoked")
        assert acknowledged_while_mapped == []
        wait_until(lambda: len(node.acknowledged) == 1, what="acknowledged after all")
        assert pager.stats()["leases"] == {}
        assert node.still_mapped == []


def test_a_revoke_waits_for_a_fetch_and_others_do_not() -> None:
    """A slab whose bytes are being read goes back when the reader is done."""
    node = two_gpus()
    tensor = random_bytes(30 * MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        gpu = next(iter(node.leases.values())).gpu
        other = park(pager, random_bytes(30 * MIB, seed=1))
        places = pager.pin(handle._stored)
        slow = node.revoke(gpu)
        wait_until(lambda: handle.tier == "peer" and pager.stats()["evacuated_bytes"], what="moved")
        quick = node.revoke("SHM-2" if gpu == "SHM-1" else "SHM-1")
        wait_acknowledged(node, quick)
        assert not set(slow) & set(node.acknowledged)
        assert torch.equal(places[0].memory.view(torch.uint8)[: 30 * MIB], tensor)
        pager.unpin(places, is_read=True)
        wait_acknowledged(node, slow)
        assert torch.equal(other.fetch(), random_bytes(30 * MIB, seed=1))
        assert torch.equal(handle.fetch(), tensor)


def test_nothing_new_is_put_into_a_slab_that_is_asked_back() -> None:
    """Though it has room, and is still there because somebody reads in it."""
    node = FakeNode(gpu_bytes={"SHM-1": 4 * MIB})  # of this one slab
    with paging(node) as pager:
        handle = park(pager, random_bytes(1000))
        places = pager.pin(handle._stored)
        revoked = node.revoke("SHM-1")
        wait_until(lambda: pager.stats()["evacuated_bytes"], what="moved")
        writing = pager.reserve(1000, handle._stored.safety)  # nobody moves it before it is written
        other = park(pager, random_bytes(1000, seed=1))
        for place in (*writing.reserved, *other._stored.places):
            assert place.slab is None or place.slab.lease_id not in revoked
        pager.discard(writing)
        pager.unpin(places, is_read=True)
        wait_acknowledged(node, revoked)
        assert torch.equal(other.fetch(), random_bytes(1000, seed=1))


def test_a_revoke_waits_for_a_write() -> None:
    """What is being offloaded into the slab is moved when it is all there."""
    node = two_gpus()
    tensor = random_bytes(1000)
    with paging(node) as pager:
        keeper = park(pager, tensor)
        reservation = pager.reserve(1000, keeper._stored.safety)
        revoked = node.revoke(next(iter(node.leases.values())).gpu)
        wait_until(lambda: pager.stats()["evacuated_bytes"], what="the rest is moved")
        reservation.reserved[0].memory.view(torch.uint8)[
            reservation.reserved[0].offset : reservation.reserved[0].offset + 1000
        ].copy_(tensor)
        assert not node.acknowledged
        stored = pager.written(reservation)
        wait_acknowledged(node, revoked)
        places = pager.pin(stored)
        offset = places[0].offset
        assert torch.equal(places[0].memory.view(torch.uint8)[offset : offset + 1000], tensor)
        pager.unpin(places, is_read=True)


def test_a_release_during_the_move_frees_both_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody wants the bytes any more: the copy is thrown away."""
    node = two_gpus()
    copies = copying.copy_spans
    with paging(node) as pager:
        handle = park(pager, random_bytes(MIB))

        def release_first(pairs: Sequence[tuple[Span, Span]]) -> None:
            handle.release()
            copies(pairs)

        monkeypatch.setattr(copying, "copy_spans", release_first)
        wait_acknowledged(node, node.revoke(next(iter(node.leases.values())).gpu))
        assert pager.stats()["peer_bytes"] == 0
        assert pager.stats()["host_bytes"] == 0


def test_no_memory_to_move_to_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes stay readable where they are meanwhile; the slab is late, not lost."""
    node = FakeNode()
    tensor = random_bytes(MIB)
    makes = Memory.of_host
    tries: list[int] = []

    def scarce(nbytes: int) -> Memory:
        tries.append(nbytes)
        if len(tries) < 3:
            raise MemoryError("none left")
        return makes(nbytes)

    with paging(node) as pager:
        handle = park(pager, tensor)
        monkeypatch.setattr(Memory, "of_host", scarce)
        revoked = node.revoke("SHM-1")
        wait_until(lambda: tries, what="a first try")
        assert torch.equal(handle.fetch(), tensor)
        wait_acknowledged(node, revoked)
        assert torch.equal(handle.fetch(), tensor)


def test_a_copy_that_fails_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault neither ends the worker's thread nor loses a byte; it is logged."""
    node = two_gpus()
    tensor = random_bytes(MIB)
    copies = copying.copy_spans
    tries: list[Span] = []

    def fails_first(pairs: Sequence[tuple[Span, Span]]) -> None:
        tries.extend(target for _, target in pairs)
        if len(tries) == 1:
            raise RuntimeError("a copy failed")
        copies(pairs)

    with paging(node) as pager:
        handle = park(pager, tensor)
        monkeypatch.setattr(copying, "copy_spans", fails_first)
        wait_acknowledged(node, node.revoke("SHM-1"))
        assert torch.equal(handle.fetch(), tensor)
        assert pager.stats()["peer_bytes"] == MIB  # the place of the failed copy is free again
    assert "a copy failed" in caplog.text


def test_a_slab_that_can_not_be_emptied_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU that fails for good keeps its own slab in use; the others go back in time."""
    node = two_gpus()
    stuck, tensor = random_bytes(3 * MIB), random_bytes(MIB)
    copies = copying.copy_spans
    tries: list[Span] = []

    def fails(pairs: Sequence[tuple[Span, Span]]) -> None:
        found = [target for source, target in pairs if source.nbytes == stuck.nbytes]
        if found:
            tries.extend(found)
            raise RuntimeError("the device is gone")
        copies(pairs)

    with paging(node) as pager:
        park(pager, random_bytes(4 * MIB))  # fills the first slab, so that each has one of its own
        kept, moved = park(pager, stuck), park(pager, random_bytes(6 * MIB))
        last = park(pager, tensor)
        assert len(node.leases) >= 2
        monkeypatch.setattr(copying, "copy_spans", fails)
        ours = {place.slab.lease_id for place in kept._stored.places if place.slab is not None}
        wait_acknowledged(node, tuple({*node.revoke("SHM-1"), *node.revoke("SHM-2")} - ours))
        wait_until(lambda: len(tries) > 1, what="it is tried again")
        assert len(tries) < 50  # now and then, not as fast as it fails
        assert torch.equal(last.fetch(), tensor)
        assert torch.equal(kept.fetch(), stuck)
        assert moved.fetch().numel() == 6 * MIB
        monkeypatch.undo()
        wait_acknowledged(node, tuple(ours))
    assert "the device is gone" in caplog.text


def test_an_acknowledgement_that_does_not_get_through_is_no_harm() -> None:
    """The slab is unmapped, its data elsewhere; the daemon asks again."""
    node = FakeNode()
    tensor = random_bytes(MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        node.unreachable = "lost"
        revoked = node.revoke("SHM-1")
        wait_until(lambda: pager.stats()["leases"] == {}, what="the slab is gone")
        assert (handle.tier, node.acknowledged) == ("host", [])
        node.unreachable = ""
        node.revoke("SHM-1", revoked)
        wait_acknowledged(node, revoked)
        assert torch.equal(handle.fetch(), tensor)


def test_leases_that_ended_are_emptied_without_a_word() -> None:
    """A daemon that does not know them has nobody waiting."""
    node = FakeNode()
    tensor = random_bytes(MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        ids = node.ids_on("SHM-1")
        node.gpu_bytes["SHM-1"] = 0
        node.leases.clear()
        node.listener.leases_ended(ids)
        node.listener.leases_ended(ids)
        wait_until(lambda: pager.stats()["leases"] == {}, what="the slab is gone")
        assert (handle.tier, handle.reason) == ("host", "ended")
        assert torch.equal(handle.fetch(), tensor)
        assert node.returned == []
        assert node.listener.host_room().nbytes == MIB


def test_lost_leases_take_their_data_with_them() -> None:
    """Of both classes; what lies elsewhere stays."""
    node = two_gpus()
    with paging(node) as pager:
        lost, cached = park(pager, random_bytes(MIB)), park(pager, random_bytes(MIB), keep="cache")
        reservation = pager.reserve(1000, lost._stored.safety)
        node.listener.leases_lost(tuple(node.leases), "keeper_ended")
        assert pager.written(reservation).tier == "lost"
        for handle in (lost, cached):
            assert (handle.tier, handle.reason) == ("lost", "keeper_ended")
            with pytest.raises(LeaseLost, match="keeper_ended"):
                handle.fetch()
        wait_until(lambda: pager.stats()["leases"] == {}, what="unmapped")
        node.leases.clear()
        assert node.returned == []
        assert pager.stats()["leases_lost"] == 2
        assert park(pager, random_bytes(MIB)).tier == "peer"


def test_leases_are_named_until_they_are_unmapped() -> None:
    """The daemon takes back what is not named."""
    node = two_gpus()
    with paging(node) as pager:
        handle = park(pager, random_bytes(MIB))
        (use,) = node.listener.lease_uses()
        assert (use.used_bytes, use.copy_bytes) == (MIB, MIB)
        assert use.idle_seconds < 60
        places = pager.pin(handle._stored)
        node.listener.revoked(
            RevokeNotice(
                lender_gpu="SHM-1", nbytes=0, reason="test", deadline=0.0, lease_ids=(use.lease_id,)
            )
        )
        wait_until(lambda: pager.stats()["evacuated_bytes"], what="moved")
        assert use.lease_id in {one.lease_id for one in node.listener.lease_uses()}
        pager.unpin(places, is_read=True)
        wait_acknowledged(node, (use.lease_id,))
        assert use.lease_id not in {one.lease_id for one in node.listener.lease_uses()}


@pytest.mark.limit(60)
@pytest.mark.parametrize("settled_seconds", [slabs.SETTLED_SECONDS, 0.0])
def test_threads_go_on_while_every_gpu_is_asked_back_again_and_again(
    settled_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight threads offload, fetch and release; not one byte differs.

    Also where all that went to the host is brought back at once, each time.
    """
    monkeypatch.setattr(slabs, "SETTLED_SECONDS", settled_seconds)
    node = FakeNode(gpu_bytes={f"SHM-{number}": 32 * MIB for number in range(1, 5)})
    faults: list[BaseException] = []
    stop = threading.Event()
    rounds = [0] * 8
    with paging(node) as pager:
        threads = [
            threading.Thread(target=_use, args=(pager, number, rounds, stop, faults))
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        revokes = _revoke_for(node, seconds=2.0)
        stop.set()
        for thread in threads:
            thread.join()
        wait_until(lambda: pager.stats()["peer_bytes"] == 0, what="all is released")
        assert pager.stats()["host_bytes"] == 0
    assert faults == []
    assert min(rounds) > 5
    assert revokes > 5
    assert node.still_mapped == []


def _use(
    pager: Pager, number: int, rounds: list[int], stop: threading.Event, faults: list[BaseException]
) -> None:
    chance = random.Random(number)  # noqa: S311 - a story that repeats, no secret
    held = []
    try:
        while not stop.is_set():
            rounds[number] += 1
            tensor = random_bytes(chance.choice((100, 4096, 70_000, 900_000)), seed=rounds[number])
            held.append((park(pager, tensor), tensor))
            handle, expected = chance.choice(held)
            assert torch.equal(handle.fetch(), expected)
            if len(held) > 12:
                held.pop(chance.randrange(len(held)))[0].release()
        for handle, expected in held:
            assert torch.equal(handle.fetch(out=torch.empty_like(expected)), expected)
    except BaseException as fault:  # noqa: BLE001 - told by the test's own thread
        faults.append(fault)


def _revoke_for(node: FakeNode, *, seconds: float) -> int:
    """Ask each GPU in turn for everything; it lends again when it has it. How many leases."""
    count = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for gpu in tuple(node.gpu_bytes):
            revoked = node.revoke(gpu)
            wait_acknowledged(node, revoked)
            node.gpu_bytes[gpu] = 32 * MIB
            count += len(revoked)
    return count
