"""Several tensors at once: all or none, each with a handle of its own afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from aqua_client import copying, transfers
from aqua_client.batches import fetch_many, offload_many
from aqua_client.copying import Span
from aqua_client.errors import (
    HandleReleased,
    InsufficientMemory,
    InvalidRequest,
    LeaseLost,
    UnsupportedTensor,
)
from aqua_client.layouts import Layout
from aqua_client.pager import Pager
from aqua_client.streams import Copier
from tests.client.pagers import no_daemon, paging, park, random_bytes, two_gpus, wait_acknowledged
from tests.fakes.session import MIB, FakeNode
from tests.fakes.streams import FakeStreams
from tests.nodes import wait_until


@pytest.fixture(params=["peer", "host"])
def pager(request: pytest.FixtureRequest) -> Iterator[Pager]:
    """On each tier."""
    with paging(two_gpus() if request.param == "peer" else no_daemon()) as made:
        yield made


def some_tensors() -> list[torch.Tensor]:
    return [
        torch.randn(4, 5),
        torch.arange(7),
        torch.zeros(0, 3),
        torch.randn(4, 5).t(),
        random_bytes(5 * MIB),
    ]


def held(pager: Pager) -> list[object]:
    return [pager.stats()[name] for name in ("peer_bytes", "host_bytes", "offloads", "fetches")]


def test_all_come_back_in_order(pager: Pager) -> None:
    """With their own layouts."""
    tensors = some_tensors()
    handles = offload_many(pager, tensors, "store")
    again = fetch_many(pager, handles)
    for tensor, one in zip(tensors, again, strict=True):
        assert torch.equal(tensor, one)
        assert tensor.stride() == one.stride()
    assert pager.stats()["offloads"] == pager.stats()["fetches"] == len(tensors)


def test_outs_are_written_and_returned(pager: Pager) -> None:
    """One for each handle."""
    tensors = some_tensors()
    outs = [torch.zeros_like(tensor) for tensor in tensors]
    again = fetch_many(pager, offload_many(pager, tensors, "store"), outs)
    assert all(one is out for one, out in zip(again, outs, strict=True))
    assert all(torch.equal(one, tensor) for one, tensor in zip(outs, tensors, strict=True))


def test_none_is_no_trouble(pager: Pager) -> None:
    """A batch may be empty."""
    assert offload_many(pager, [], "store") == []
    assert fetch_many(pager, []) == fetch_many(pager, [], []) == []


def test_each_handle_is_one_like_any_other(pager: Pager) -> None:
    """It is released by itself, and fetched by itself; one twice in a batch is fetched twice."""
    first, second = offload_many(pager, [torch.ones(10), torch.zeros(10)], "store")
    first.release()
    assert torch.equal(second.fetch(), torch.zeros(10))
    other = park(pager, torch.ones(3))
    one, two, three = fetch_many(pager, [second, other, second])
    assert one is not three
    assert torch.equal(one, three)
    assert torch.equal(two, torch.ones(3))


@pytest.mark.parametrize("nbytes", [4096, 100_000])
def test_hundreds_lie_apart_and_each_is_released_by_itself(nbytes: int) -> None:
    """Whether a slab has room for many of them at once, or for one after the other; one is empty."""
    tensors = [random_bytes(nbytes, seed=seed) for seed in range(3 * transfers.TOGETHER // 2)]
    tensors.insert(5, torch.empty(0))
    with paging(FakeNode(smallest_slab_bytes=2 * MIB, largest_slab_bytes=4 * MIB)) as pager:
        handles = offload_many(pager, tensors, "store")
        assert {one.tier for one in handles if one.nbytes} == {"peer"}
        for handle in handles[::2]:
            handle.release()
        for tensor, handle in zip(tensors[1::2], handles[1::2], strict=True):
            assert torch.equal(handle.fetch(), tensor)
            handle.release()
        assert held(pager) == [0, 0, len(tensors), len(tensors[1::2])]
        slabs = pager._tiers.slabs.values()
        assert all(slab.extents.largest_free_bytes == slab.nbytes for slab in slabs)


def test_the_need_of_a_gradient_comes_back(pager: Pager) -> None:
    """As from a fetch."""
    handles = offload_many(pager, [torch.nn.Parameter(torch.ones(3)), torch.ones(3)], "store")
    assert [one.requires_grad for one in fetch_many(pager, handles)] == [True, False]


def test_one_that_can_not_be_parked_keeps_all_from_it(pager: Pager) -> None:
    """So does a class that does not exist."""
    before = held(pager)
    with pytest.raises(UnsupportedTensor):
        offload_many(pager, [torch.ones(1000), torch.eye(2).to_sparse()], "store")
    with pytest.raises(InvalidRequest, match="forever"):
        offload_many(pager, [torch.ones(1000)], "forever")
    assert held(pager) == before


def test_no_room_for_all_is_room_for_none() -> None:
    """Also when the first ones would have had room."""
    with paging(no_daemon(), host_limit_bytes=3 * MIB) as pager:
        with pytest.raises(InsufficientMemory):
            offload_many(pager, [random_bytes(MIB) for _ in range(4)], "store")
        assert held(pager)[:2] == [0, 0]
        assert len(offload_many(pager, [random_bytes(MIB) for _ in range(3)], "store")) == 3


def test_one_that_is_released_keeps_all_from_being_written(pager: Pager) -> None:
    """Nothing stays pinned."""
    kept, gone = offload_many(pager, [torch.ones(10), torch.ones(10)], "store")
    gone.release()
    out = torch.zeros(10)
    with pytest.raises(HandleReleased):
        fetch_many(pager, [kept, gone], [out, out])
    assert not out.any()
    assert all(place.pins == 0 for place in kept._stored.places)


def test_one_that_is_lost_keeps_all_from_being_written() -> None:
    """A batch may hold several classes."""
    node = FakeNode(gpu_bytes={"SHM-1": 64 * MIB, "SHM-2": 64 * MIB})
    with paging(node) as pager:
        kept = park(pager, torch.ones(10))
        lost = park(pager, torch.ones(10), keep="cache")
        wait_acknowledged(node, node.revoke("SHM-1") + node.revoke("SHM-2"))
        out = torch.zeros(10)
        with pytest.raises(LeaseLost):
            fetch_many(pager, [kept, lost], [out, torch.zeros(10)])
        assert not out.any()


def test_what_does_not_fit_is_refused_before_anything_is_written(pager: Pager) -> None:
    """A wrong out, too few of them, no handle, a handle of another client."""
    handles = offload_many(pager, [torch.ones(10), torch.ones(3)], "store")
    out = torch.zeros(10)
    with pytest.raises(InvalidRequest, match="shape"):
        fetch_many(pager, handles, [out, torch.zeros(4)])
    with pytest.raises(InvalidRequest, match="1 outs for 2"):
        fetch_many(pager, handles, [out])
    with pytest.raises(InvalidRequest, match="no handle"):
        fetch_many(pager, [torch.ones(1)])  # type: ignore[list-item] # what it is about
    with paging(no_daemon()) as other, pytest.raises(InvalidRequest, match="another client"):
        fetch_many(other, handles)
    assert not out.any()


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_a_copy_that_fails_half_way_leaves_no_pin_and_no_byte(
    pager: Pager, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException]
) -> None:
    """The ones before it are taken back too."""
    tensors = [torch.ones(1000), torch.ones(3)]
    handles = offload_many(pager, tensors, "store")
    before = held(pager)
    write, read = copying.write, copying.read

    def failing_write(
        source: torch.Tensor, layout: Layout, spans: Sequence[Span], streams: Copier | None
    ) -> None:
        if layout.nbytes == 12:
            raise fault("no copy")
        write(source, layout, spans, streams)

    def failing_read(
        spans: Sequence[Span], layout: Layout, target: torch.Tensor, streams: Copier | None
    ) -> None:
        if layout.nbytes == 12:
            raise fault("no copy")
        read(spans, layout, target, streams)

    with monkeypatch.context() as patch:
        patch.setattr(copying, "write", failing_write)
        patch.setattr(copying, "read", failing_read)
        with pytest.raises(fault, match="no copy"):
            offload_many(pager, tensors, "store")
        with pytest.raises(fault, match="no copy"):
            fetch_many(pager, handles)
    assert held(pager) == before
    assert all(torch.equal(*two) for two in zip(fetch_many(pager, handles), tensors, strict=True))


def test_enqueued_copies_hold_their_places() -> None:
    """Each until its own event is done, and all are read after they are written."""
    streams, node = FakeStreams(), FakeNode()
    with paging(node, streams=streams) as pager:
        handles = offload_many(pager, [torch.ones(256), torch.zeros(256)], "store")
        fetch_many(pager, handles)
        assert [event.waits for event in streams.events] == [1, 1, 0, 0]
        for handle in handles:
            handle.release()
        for event in (streams.events[0], streams.events[2]):
            event.finish()
        wait_until(lambda: len(pager._tiers.flights) == 2, what="the first one's are over")
        assert pager.stats()["peer_bytes"] == 1024
        streams.finish_all()
        wait_until(lambda: pager.stats()["peer_bytes"] == 0, what="free")
