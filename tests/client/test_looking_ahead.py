"""A process that grows steadily finds its next slab there; nobody else pays for that."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from aqua_client import growth, worker
from aqua_client.borrowing_aside import THREAD_NAME
from aqua_client.pager import Pager
from aqua_client.tensors import OffloadedTensor
from tests.client.pagers import paging, park, random_bytes
from tests.fakes.session import MIB, FakeNode
from tests.nodes import wait_until

STEP_BYTES = MIB // 4


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker looks more often than in earnest, and soon takes growth for steady."""
    monkeypatch.setattr(worker, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(growth, "STEADY_SECONDS", 0.05)


def node_of(nbytes: int = 256 * MIB) -> FakeNode:
    return FakeNode(gpu_bytes={"SHM-1": nbytes})


def empty_slabs(pager: Pager) -> int:
    """How many slabs nothing lies in."""
    with pager._tiers.lock:
        return sum(not slab.places for slab in pager._tiers.slabs.values())


def looked(pager: Pager, used_bytes: int) -> Callable[[], bool]:
    """Whether the worker has seen that so much is used."""

    def look() -> bool:
        with pager._tiers.lock:
            growths = pager._worker._ahead._growth.values()
            return any(one._peaks and one._peaks[-1][1] == used_bytes for one in growths)

    return look


def grow_until(pager: Pager, end: Callable[[], bool]) -> list[OffloadedTensor]:
    """Park step by step, each seen by the worker, until *end*."""
    parked: list[OffloadedTensor] = []
    grow_further(pager, parked, end)
    return parked


def test_steady_growth_finds_its_next_slab_there() -> None:
    """It was asked for by a thread of the library's, and is filled when the others are full."""
    node = node_of()
    with paging(node) as pager:
        parked = grow_until(pager, lambda: empty_slabs(pager) == 1)
        asked = list(node.asked)
        assert asked[-1] > asked[0]  # sizes double as ever
        held = sum(slab.nbytes for slab in pager._tiers.slabs.values() if slab.places)
        while len(parked) * STEP_BYTES < held:
            parked.append(park(pager, torch.zeros(STEP_BYTES, dtype=torch.uint8)))
        assert empty_slabs(pager) == 1
        assert node.asked == asked  # never more than one ahead
        parked.append(park(pager, torch.zeros(STEP_BYTES, dtype=torch.uint8)))
        assert empty_slabs(pager) == 0


def test_no_slab_is_borrowed_ahead_for_one_tensor() -> None:
    """However full it makes the slab, and however long it stays."""
    node = node_of()
    with paging(node) as pager:
        handle = park(pager, random_bytes(4 * MIB))
        seen = pager._worker._ahead._growth[handle._stored.safety]
        wait_until(looked(pager, 4 * MIB), what="the worker has looked")
        first = seen._peaks[-1][0]
        wait_until(lambda: seen.looked_at > first + 0.2, what="and a few times more")
        assert node.asked == [4 * MIB]


def test_a_refusal_ahead_costs_no_offload_anything() -> None:
    """It is not taken for one of theirs: a smaller slab may do for them."""
    node = FakeNode(gpu_bytes={"SHM-1": 8 * MIB})  # one of 4 and, halved, one more
    with paging(node) as pager:
        parked = grow_until(pager, lambda: 8 * MIB in node.asked)
        wait_until(
            lambda: not any(one.name == THREAD_NAME for one in threading.enumerate()), what="asked"
        )
        asked = len(node.asked)
        while len(parked) * STEP_BYTES < 8 * MIB:
            parked.append(park(pager, random_bytes(STEP_BYTES)))
        assert {handle.tier for handle in parked} == {"peer"}
        assert node.asked[asked:].count(4 * MIB) == 1


def test_a_slab_that_was_borrowed_ahead_goes_back_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """After as long as any last empty one, and is not asked for again at once."""
    node = node_of()
    with paging(node) as pager:
        parked = grow_until(pager, lambda: empty_slabs(pager) == 1)
        asked = list(node.asked)
        monkeypatch.setattr(worker, "WARM_SECONDS", 0.1)
        wait_until(lambda: node.released, what="given back")
        grow_further(pager, parked, lambda: pager._tiers.free_slab_bytes < STEP_BYTES)
        assert pager._tiers.free_slab_bytes < STEP_BYTES
        assert node.asked == asked


def test_an_offload_waits_for_the_slab_that_is_on_its_way() -> None:
    """It asks for none of its own."""
    node = node_of()

    with paging(node) as pager:
        parked = [park(pager, random_bytes(STEP_BYTES))]
        asked = len(node.asked) + 1
        node.answers.clear()
        grow_further(pager, parked, lambda: len(node.asked) == asked)
        threading.Timer(0.5, node.answers.set).start()
        parked.append(park(pager, random_bytes(4 * MIB)))
        assert parked[-1].tier == "peer"
        assert len(node.asked) == asked


def grow_further(pager: Pager, parked: list[OffloadedTensor], end: Callable[[], bool]) -> None:
    """As `grow_until`, after what is parked."""
    tensor = random_bytes(STEP_BYTES)
    while not end():
        assert len(parked) < 200
        parked.append(park(pager, tensor))
        seen = looked(pager, len(parked) * STEP_BYTES)
        wait_until(lambda seen=seen: end() or seen(), what="the worker has looked")  # type: ignore[misc]
