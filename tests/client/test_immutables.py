"""A tensor that is never written to is copied out once, and known when it is offered again."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from aqua_client.errors import ForkedChild, HandleReleased, InvalidRequest
from aqua_client.immutables import Immutables
from aqua_client.pager import Pager
from aqua_client.tensors import OffloadedTensor
from tests.client.pagers import no_daemon, paging, random_bytes, two_gpus, wait_acknowledged
from tests.fakes.session import MIB, FakeNode
from tests.nodes import wait_until


@pytest.fixture(params=["peer", "host"])
def pager(request: pytest.FixtureRequest) -> Iterator[Pager]:
    """On each tier."""
    with paging(two_gpus() if request.param == "peer" else no_daemon()) as made:
        yield made


@pytest.fixture
def known(pager: Pager) -> Immutables:
    """Of that pager."""
    return Immutables(pager)


def park(known: Immutables, tensor: torch.Tensor, *, keep: str = "store") -> OffloadedTensor:
    return known.offload(tensor, keep, overlap=False)


def offloads(pager: Pager) -> object:
    """How many tensors have been copied out."""
    return pager.stats()["offloads"]


def test_what_was_fetched_is_parked_again_for_nothing(pager: Pager, known: Immutables) -> None:
    """As often as one likes; so is the tensor itself, and what it was fetched into."""
    tensor = torch.randn(100)
    handle = park(known, tensor)
    out = torch.zeros(100)
    for again in (tensor, handle.fetch(), handle.fetch(out=out), handle.fetch()):
        assert park(known, again) is handle
        assert torch.equal(again, tensor)
    assert park(known, out) is handle
    assert offloads(pager) == 1


def test_one_that_was_written_to_after_all_is_copied(pager: Pager, known: Immutables) -> None:
    """Through a view; neither handle gives the other's bytes."""
    handle = park(known, torch.zeros(10))
    for begin in (0, 3):
        tensor = handle.fetch()
        tensor[begin:].fill_(2)
        other = park(known, tensor)
        assert other is not handle
        assert torch.equal(other.fetch(), tensor)
    assert torch.equal(handle.fetch(), torch.zeros(10))
    assert offloads(pager) == 3


def test_an_equal_tensor_is_another_one(pager: Pager, known: Immutables) -> None:
    """Nothing is compared by value; a view is a tensor of its own."""
    tensor = torch.zeros(10)
    handle = park(known, tensor)
    assert park(known, torch.zeros(10)) is not handle
    assert park(known, tensor.view(2, 5)).shape == (2, 5)
    assert offloads(pager) == 3


def test_what_is_released_or_of_another_class_is_copied(pager: Pager, known: Immutables) -> None:
    """A handle that is given has the bytes, and keeps them as was asked."""
    tensor = torch.randn(10)
    handle = park(known, tensor)
    assert park(known, tensor, keep="cache") is not handle
    with pytest.raises(InvalidRequest, match="forever"):
        park(known, tensor, keep="forever")
    again = park(known, tensor)
    again.release()
    with pytest.raises(HandleReleased):
        again.fetch()
    assert torch.equal(park(known, tensor).fetch(), tensor)
    assert offloads(pager) == 4


def test_what_was_lost_is_copied() -> None:
    """As `cache` data is by a revoke."""
    node = FakeNode(gpu_bytes={"SHM-1": 64 * MIB})
    tensor = torch.randn(10)
    with paging(node) as pager:
        known = Immutables(pager)
        handle = park(known, tensor, keep="cache")
        wait_acknowledged(node, node.revoke("SHM-1"))
        assert handle.tier == "lost"
        assert torch.equal(park(known, tensor, keep="cache").fetch(), tensor)


def test_knowing_a_tensor_keeps_neither_it_nor_its_copy(pager: Pager, known: Immutables) -> None:
    """Dropped handles release their memory, dropped tensors are forgotten."""
    tensor = random_bytes(1000)
    handle = park(known, tensor)
    fetched = handle.fetch()
    del fetched
    del handle
    gc.collect()
    wait_until(lambda: pager.stats()["releases"] == 1, what="released")
    assert len(known._known) == 1
    assert torch.equal(park(known, tensor).fetch(), tensor)
    del tensor
    gc.collect()
    assert not known._known


def test_another_tensor_at_the_same_address_is_not_taken_for_it(
    pager: Pager, known: Immutables
) -> None:
    """Python gives an id to the next object."""
    held = []
    for value in range(50):
        tensor = torch.full((4,), value)
        held.append(park(known, tensor))
        del tensor
    assert [int(handle.fetch()[0]) for handle in held] == list(range(50))
    assert offloads(pager) == 50


def test_within_inference_mode_the_promise_is_all_there_is(pager: Pager, known: Immutables) -> None:
    """Such tensors have no version; a server that never writes still pays nothing."""
    with torch.inference_mode():
        handle = park(known, torch.ones(10))
        assert park(known, handle.fetch()) is handle
    assert offloads(pager) == 1


def test_it_raises_what_offloading_does(pager: Pager, known: Immutables) -> None:
    """In a forked child, and when the client is closed; also for a tensor that is known."""
    tensor = torch.ones(3)
    handle = park(known, tensor)
    pager._is_forked = True
    with pytest.raises(ForkedChild):
        park(known, tensor)
    pager._is_forked = False
    pager.close()
    with pytest.raises(HandleReleased):
        park(known, tensor)
    del handle
