"""Leases that are asked back: what they hold moves, or is dropped, and only then they are given.

Every case runs with real mappings; `paging` fails when a slab was still mapped as it went back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import pytest
import torch

from aqua_client import copying, telling
from aqua_client.copying import Memory, Span
from aqua_client.errors import LeaseLost
from aqua_client.records import Grant
from aqua_client.slabs import Slab
from aqua_client.tensors import OffloadedTensor
from tests.client.pagers import paging, park, random_bytes, two_gpus, wait_acknowledged
from tests.fakes.session import MIB, FakeNode
from tests.nodes import wait_until


def slabs_of(handles: Iterable[OffloadedTensor]) -> list[Slab]:
    found = (place.slab for handle in handles for place in handle._stored.places)
    return [slab for slab in found if slab is not None]


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


def test_what_was_moved_is_stated_only_when_its_slab_goes_back() -> None:
    """Until then the slab's own reservation covers it, so that no byte is reserved twice."""
    node = FakeNode(host_pool_bytes=0)
    moved, read = random_bytes(2 * MIB), random_bytes(MIB, seed=1)
    with paging(node, host_limit_bytes=0) as pager:
        first, second = park(pager, moved), park(pager, read)
        places = pager.pin(second._stored)
        asked = node.revoke("SHM-1")
        wait_until(lambda: first.tier == "host", what="what nobody reads has moved")
        assert node.acknowledged == []
        assert node.listener.host_room().nbytes == 0
        pager.unpin(places, is_read=True)
        wait_acknowledged(node, asked)
        assert node.returned[-1].room.nbytes == 3 * MIB
        assert torch.equal(first.fetch(), moved)
        assert torch.equal(second.fetch(), read)


def test_nothing_moves_to_another_slab_of_the_same_gpu() -> None:
    """Its owner needs memory there, and is about to ask for that one, too."""
    node = FakeNode(gpu_bytes={"SHM-1": 64 * MIB})
    tensor = random_bytes(3 * MIB)
    with paging(node) as pager:
        first, second = park(pager, tensor), park(pager, tensor)
        (place,) = first._stored.places
        assert place.slab is not None
        wait_acknowledged(node, node.revoke("SHM-1", [place.slab.lease_id]))
        assert pager._tiers.free_slab_bytes >= 3 * MIB
        assert (first.tier, second.tier) == ("host", "peer")
        assert torch.equal(first.fetch(), tensor)


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


def test_who_was_refused_does_not_ask_again_for_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking may take long, as beside a busy interpreter: the others go to the host without it."""
    monkeypatch.setattr("aqua_client.borrowing.BACK_OFF_SECONDS", 0.0)
    node = FakeNode()
    tensors = [random_bytes(MIB, seed=seed) for seed in range(8)]
    with paging(node) as pager:
        handles = [park(pager, tensor) for tensor in tensors]
        node.refusal = "no_room"
        before = len(node.asked)
        wait_acknowledged(node, node.revoke("SHM-1"))
        sizes = node.asked[before:]
        assert len(sizes) == len(set(sizes)) > 0  # one slab, then smaller ones
        assert {handle.tier for handle in handles} == {"host"}
        assert all(torch.equal(h.fetch(), t) for h, t in zip(handles, tensors, strict=True))


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


def test_what_needs_no_copy_is_acknowledged_first_and_in_one_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An owner waits for all of it: not a call for each slab, nor for copies that others need."""
    monkeypatch.setattr(telling, "TOGETHER_SECONDS", 60.0)  # a busy machine may take long
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


def test_what_has_less_time_does_not_wait_for_what_has_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An owner who gives a minute holds up no other, whose leases are asked back meanwhile."""
    node = two_gpus(128 * MIB)
    copies = copying.copy_spans
    asked: list[str] = []

    def others_meanwhile(pairs: Sequence[tuple[Span, Span]]) -> None:
        if not asked:
            asked.extend((soon, at_once))
            node.revoke("SHM-1", [soon], seconds=2.0)
            node.revoke("SHM-1", [at_once], seconds=0.25)
        copies(pairs)

    with paging(node) as pager:
        sizes = (3, 6, 14, 25)  # of slabs of 4, 8, 16 and 32 MiB
        handles = [park(pager, random_bytes(size * MIB, seed=size)) for size in sizes]
        *patient, soon = (slab.lease_id for slab in slabs_of(handles))
        [at_once] = (one.lease_id for one in slabs_of([park(pager, random_bytes(9), keep="cache")]))
        monkeypatch.setattr(copying, "copy_spans", others_meanwhile)
        wait_acknowledged(node, node.revoke("SHM-1", patient, seconds=60.0))
        wait_acknowledged(node, (soon, at_once))
        assert node.acknowledged == [patient[0], at_once, soon, *patient[1:]]


def test_a_revoke_that_is_repeated_gives_less_time_and_never_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The slab goes ahead of those that were asked for with it, whatever is said after that."""
    node = two_gpus(128 * MIB)
    copies = copying.copy_spans
    hastened: list[str] = []

    def hastened_meanwhile(pairs: Sequence[tuple[Span, Span]]) -> None:
        if not hastened:
            hastened.append(last)
            for seconds in (1.0, 60.0):
                node.revoke("SHM-1", [last], seconds=seconds)
        copies(pairs)

    with paging(node) as pager:
        sizes = (3, 6, 14, 25)  # of slabs of 4, 8, 16 and 32 MiB
        handles = [park(pager, random_bytes(size * MIB, seed=size)) for size in sizes]
        *others, last = (slab.lease_id for slab in slabs_of(handles))
        monkeypatch.setattr(copying, "copy_spans", hastened_meanwhile)
        wait_acknowledged(node, node.revoke("SHM-1", [*others, last], seconds=50.0))
        assert node.acknowledged == [others[0], last, *others[1:]]


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
