"""News, copies and calls that cross: each at the very moment when it hurts most.

A fake stops in the middle of a copy or a mapping and does there what another thread or the daemon
may do. What one thread does after the other is in `test_revokes`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from aqua_client import copying
from aqua_client.copying import Memory, Span
from aqua_client.errors import HandleReleased
from aqua_client.records import Grant
from aqua_client.tensors import OffloadedTensor
from tests.client.pagers import paging, park, random_bytes, two_gpus, wait_acknowledged
from tests.fakes.session import MIB, FakeNode, FakeSession, is_mapped
from tests.nodes import wait_until

Action = Callable[[], None]


def during_the_move(monkeypatch: pytest.MonkeyPatch, act: Action) -> list[Span]:
    """Have *act* run before the first copy of an evacuation; where each of them goes to."""
    copies, targets = copying.copy_spans, list[Span]()

    def act_first(pairs: Sequence[tuple[Span, Span]]) -> None:
        is_first = not targets
        targets.extend(target for _, target in pairs)
        if is_first:
            act()
        copies(pairs)

    monkeypatch.setattr(copying, "copy_spans", act_first)
    return targets


def gpu_of(handle: OffloadedTensor) -> str:
    (place,) = handle._stored.places
    return "" if place.slab is None else place.slab.lender_gpu


def other_than(gpu: str) -> str:
    return "SHM-2" if gpu == "SHM-1" else "SHM-1"


def test_what_is_being_moved_survives_the_loss_of_where_it_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bytes are still where they were: a keeper that dies takes only what it holds."""
    node, tensor = two_gpus(), random_bytes(MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        first = gpu_of(handle)

        def lose_the_target() -> None:
            lost = node.ids_on(other_than(first))
            assert lost
            node.gpu_bytes[other_than(first)] = 0
            for one in lost:
                node.leases.pop(one)
            node.listener.leases_lost(lost, "keeper_ended")
            assert handle.tier == "peer"
            assert torch.equal(handle.fetch(), tensor)

        during_the_move(monkeypatch, lose_the_target)
        wait_acknowledged(node, node.revoke(first))
        assert handle.tier == "host"
        assert torch.equal(handle.fetch(), tensor)
        wait_until(lambda: pager.stats()["leases"] == {}, what="the lost slab is unmapped")
        assert pager.stats()["peer_bytes"] == 0


def test_what_is_being_moved_is_lost_with_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy may have been of memory that had failed already."""
    node = two_gpus()
    with paging(node) as pager:
        handle = park(pager, random_bytes(MIB))
        first = gpu_of(handle)

        def lose_the_source() -> None:
            lost = node.ids_on(first)
            node.leases.pop(lost[0])
            node.listener.leases_lost(lost, "keeper_ended")

        during_the_move(monkeypatch, lose_the_source)
        node.revoke(first)
        wait_until(lambda: handle.tier == "lost", what="lost")
        wait_until(lambda: pager.stats()["peer_bytes"] == 0, what="nothing is kept of it")
        assert pager.stats()["host_bytes"] == 0


def test_where_it_is_moved_to_is_asked_back_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on to the host, and both slabs go back."""
    node, tensor = two_gpus(), random_bytes(MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        first = gpu_of(handle)
        asked: list[str] = []
        during_the_move(monkeypatch, lambda: asked.extend(node.revoke(other_than(first))))
        asked.extend(node.revoke(first))
        wait_until(lambda: len(asked) == 2, what="both are asked back")
        wait_acknowledged(node, tuple(asked))
        assert handle.tier == "host"
        assert torch.equal(handle.fetch(), tensor)
        assert pager.stats()["peer_bytes"] == 0


def test_nothing_new_goes_into_a_slab_that_is_being_emptied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is room in it, and it is the one used last; what comes meanwhile goes elsewhere."""
    node = two_gpus()
    first, second = random_bytes(MIB), random_bytes(MIB, seed=1)
    arrived: list[OffloadedTensor] = []
    with paging(node) as pager:
        handle = park(pager, first)
        gpu = gpu_of(handle)
        during_the_move(monkeypatch, lambda: arrived.append(park(pager, second)))
        wait_acknowledged(node, node.revoke(gpu))
        assert gpu_of(arrived[0]) == gpu_of(handle) == other_than(gpu)
        assert torch.equal(handle.fetch(), first)
        assert torch.equal(arrived[0].fetch(), second)


@pytest.mark.parametrize("is_fetched", [False, True], ids=["released", "fetched-then-released"])
def test_a_tensor_of_several_slabs_is_released_while_one_of_them_is_emptied(
    monkeypatch: pytest.MonkeyPatch,
    is_fetched: bool,  # noqa: FBT001 - a parameter
) -> None:
    """All of its pieces go, also the one that is on its way."""
    node = FakeNode(
        gpu_bytes=dict.fromkeys(("SHM-1", "SHM-2", "SHM-3"), 8 * MIB), largest_slab_bytes=4 * MIB
    )
    tensor = random_bytes(12 * MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        assert len(handle._stored.places) == 3

        def release() -> None:
            assert not is_fetched or torch.equal(handle.fetch(), tensor)
            handle.release()

        during_the_move(monkeypatch, release)
        wait_acknowledged(node, node.revoke("SHM-1"))
        with pytest.raises(HandleReleased):
            handle.fetch()
        assert pager.stats()["peer_bytes"] == pager.stats()["host_bytes"] == 0


def test_closing_waits_for_a_slab_that_is_being_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goodbye says that nothing is mapped: the daemon frees what it lent on hearing it."""
    node, opened = FakeNode(), threading.Event()
    mapped_at_goodbye: list[bool] = []
    open_slab, close = Memory.of_grant, FakeSession.close

    def closed_meanwhile(grant: Grant, *, home_gpu: str | None = None) -> Memory:
        memory = open_slab(grant, home_gpu=home_gpu)
        opened.set()
        wait_until(lambda: pager.is_closed, what="closing has begun")
        return memory

    def look(session: FakeSession, *, seconds: float = 0.2) -> None:
        mapped_at_goodbye.append(any(is_mapped(one) for one in tuple(node.leases)))
        close(session, seconds=seconds)

    monkeypatch.setattr(Memory, "of_grant", closed_meanwhile)
    monkeypatch.setattr(FakeSession, "close", look)
    with paging(node) as pager, ThreadPoolExecutor(1) as thread:
        parking = thread.submit(park, pager, random_bytes(1000))
        assert opened.wait(10.0)
        pager.close()
        with pytest.raises(HandleReleased, match="closed"):
            parking.result()
        assert mapped_at_goodbye == [False]
        assert pager.stats()["leases"] == {}


def test_a_slab_that_is_granted_to_a_closed_client_is_not_mapped() -> None:
    """The answer came too late for whoever asked; its descriptor is closed."""
    node = FakeNode()
    node.answers.clear()
    with paging(node) as pager, ThreadPoolExecutor(1) as thread:
        parking = thread.submit(park, pager, random_bytes(1000))
        wait_until(lambda: node.leases, what="a lease is granted")
        (lease_id,) = node.leases
        pager.close()
        node.answers.set()
        with pytest.raises(HandleReleased, match="closed"):
            parking.result()
        assert not is_mapped(lease_id)
        assert not any(lease_id in str(one) for one in open_files())


def open_files() -> list[Path]:
    """What this process's descriptors are of."""
    return [one.readlink() for one in Path("/proc/self/fd").iterdir() if one.exists()]
