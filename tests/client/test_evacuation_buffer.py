"""Host memory is touched ahead of evacuations, within what is reserved, and never counted as free."""

from __future__ import annotations

import pytest
import torch

from aqua_client import evacuation_buffer, host_pages, worker
from aqua_client.counters import Counters
from aqua_client.evacuation_buffer import EvacuationBuffer
from aqua_client.pager import Pager
from aqua_client.records import SafetyClass
from aqua_client.tiers import Tiers
from aqua_client.touched import TouchedPages
from tests.client.pagers import paging, park, random_bytes, two_gpus, wait_acknowledged
from tests.fakes.session import MIB, FakeNode
from tests.nodes import wait_until


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker looks more often than in earnest."""
    monkeypatch.setattr(worker, "TICK_SECONDS", 0.02)


def kept(pager: Pager) -> int:
    found = pager.stats()["evacuation_buffer_bytes"]
    assert isinstance(found, int)
    return found


def is_full(pager: Pager, nbytes: int) -> bool:
    """Less than a quarter missing, which is when it is filled up."""
    return nbytes * 3 // 4 <= kept(pager) <= nbytes


def assert_is_covered(pager: Pager) -> None:
    """It lies within what is reserved with the slabs that are held."""
    with pager._tiers.lock:
        slabs = pager._tiers.slabs.values()
        reserved = sum(slab.nbytes for slab in slabs if slab.safety is SafetyClass.STORE)
        assert pager._tiers.host.buffer.nbytes <= reserved


def test_it_follows_what_is_stored_on_peers() -> None:
    """Two slabs' worth at most here; `cache` needs none, for it is not moved."""
    node = FakeNode(gpu_bytes={"SHM-1": 256 * MIB}, largest_slab_bytes=4 * MIB)
    with paging(node) as pager:
        assert kept(pager) == 0
        cached = park(pager, random_bytes(3 * MIB), keep="cache")
        first = park(pager, random_bytes(3 * MIB))
        wait_until(lambda: kept(pager) == 3 * MIB, what="as much as is stored")
        handles = [park(pager, random_bytes(4 * MIB)) for _ in range(4)]
        wait_until(lambda: is_full(pager, 8 * MIB), what="two slabs")
        assert_is_covered(pager)
        assert first.tier == cached.tier == handles[0].tier == "peer"
        assert pager.stats()["host_bytes"] == 0
        assert node.listener.host_room().nbytes == 0  # the slabs' reservations hold for it


def test_it_never_passes_the_processs_limit() -> None:
    """What lies in the host counts too."""
    with paging(two_gpus(), host_limit_bytes=2 * MIB) as pager:
        handle = park(pager, random_bytes(4 * MIB))
        wait_until(lambda: kept(pager) == 2 * MIB, what="as much as may be")
        assert handle.tier == "peer"


def test_an_evacuation_takes_from_it_and_it_is_filled_up_again() -> None:
    """The bytes come back exactly, and what they take is no longer the buffer's."""
    node = FakeNode(gpu_bytes={"SHM-1": 256 * MIB}, largest_slab_bytes=4 * MIB)
    tensors = [random_bytes(MIB, seed=seed) for seed in range(16)]
    with paging(node) as pager:
        handles = [park(pager, tensor) for tensor in tensors]
        wait_until(lambda: is_full(pager, 8 * MIB), what="filled")
        mapped = {one._stored.places[0].slab for one in handles[:4]}
        (slab,) = mapped
        assert slab is not None
        taken = pager._tiers.host.buffer.take
        sizes: list[int] = []

        def take(nbytes: int) -> object:
            sizes.append(nbytes)
            return taken(nbytes)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(pager._tiers.host.buffer), "take", lambda _, nbytes: take(nbytes))
            wait_acknowledged(node, node.revoke("SHM-1", [slab.lease_id]))
        assert sizes == [MIB] * 4
        assert pager.stats()["host_bytes"] == 4 * MIB
        wait_until(lambda: is_full(pager, 8 * MIB), what="filled up")
        assert_is_covered(pager)
        wait_acknowledged(node, node.revoke("SHM-1"))
        assert all(torch.equal(h.fetch(), t) for h, t in zip(handles, tensors, strict=True))
        wait_until(lambda: kept(pager) == 0, what="given back with the last slab")
        assert pager.stats()["host_bytes"] == 16 * MIB


def test_it_is_given_back_when_nothing_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the slab is, which may stay for the next burst."""
    with paging(two_gpus()) as pager:
        handle = park(pager, random_bytes(4 * MIB))
        wait_until(lambda: kept(pager) == 4 * MIB, what="filled")
        handle.release()
        monkeypatch.setattr(evacuation_buffer, "IDLE_SECONDS", 0.1)
        wait_until(lambda: kept(pager) == 0, what="given back")
        assert pager.stats()["leases"]


def test_it_goes_after_the_slabs_have_been_told_of_and_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To unmap it takes as long as to unmap them; a fetch would wait for the lock meanwhile."""
    node = two_gpus()
    told_at_unmap: list[int] = []
    is_locked: list[bool] = []

    with paging(node) as pager:
        unmap = TouchedPages.unmap_surplus

        def unmap_surplus(pages: TouchedPages) -> None:
            if pages._surplus:
                told_at_unmap.append(len(node.acknowledged))
                has_lock = pager._tiers.lock.acquire(timeout=5.0)
                is_locked.append(not has_lock)
                if has_lock:
                    pager._tiers.lock.release()
            unmap(pages)

        monkeypatch.setattr(TouchedPages, "unmap_surplus", unmap_surplus)
        handles = [park(pager, random_bytes(4 * MIB)) for _ in range(2)]
        wait_until(lambda: kept(pager) == 8 * MIB, what="filled")
        for handle in handles:
            handle.release()
        revoked = [one for gpu in ("SHM-1", "SHM-2") for one in node.ids_on(gpu)]
        for gpu in ("SHM-1", "SHM-2"):
            node.revoke(gpu)
        wait_acknowledged(node, tuple(revoked))
        wait_until(lambda: told_at_unmap and kept(pager) == 0, what="given back")
    assert told_at_unmap[-1] == len(revoked)
    assert not any(is_locked)


def test_what_it_has_not_is_touched_before_it_is_copied_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page as they are written takes longer; small pieces come of pages that are there."""
    touched: list[int] = []
    monkeypatch.setattr(host_pages, "touch", lambda _, nbytes: touched.append(nbytes))
    tiers = Tiers(host_limit_bytes=64 * MIB, counters=Counters())
    found = EvacuationBuffer(tiers).memories([4 * MIB, 1024, MIB])
    assert [one.nbytes for one in found] == [4 * MIB, 1024, MIB]
    assert touched == [4 * MIB, MIB]


def test_without_a_daemon_it_is_not_free_and_makes_room() -> None:
    """An offload to the host gets what was kept, rather than nothing."""
    node = two_gpus()
    with paging(node, host_limit_bytes=8 * MIB) as pager:
        parked = park(pager, random_bytes(4 * MIB))
        wait_until(lambda: kept(pager) == 4 * MIB, what="filled")
        node.unreachable = "no_daemon"
        with pager._tiers.lock:
            assert pager._tiers.host.free_bytes(has_daemon=False) == 4 * MIB
        handle = park(pager, random_bytes(6 * MIB))
        assert handle.tier == "host"
        assert kept(pager) <= 2 * MIB
        assert torch.equal(parked.fetch(), random_bytes(4 * MIB))
        node.unreachable = ""


def test_a_closed_client_keeps_none() -> None:
    """It gives everything back."""
    with paging(two_gpus()) as pager:
        handle = park(pager, random_bytes(4 * MIB))
        wait_until(lambda: kept(pager) == 4 * MIB, what="filled")
        assert handle.tier == "peer"
    assert pager._tiers.host.buffer.nbytes == 0
