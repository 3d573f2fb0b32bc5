"""A parked tensor comes back as it was: every dtype, shape and layout; handles say what they are."""

from __future__ import annotations

import copy
import pickle
import warnings
import weakref
from collections.abc import Iterator

import pytest
import torch

from aqua_client import copying
from aqua_client.errors import HandleReleased, InvalidRequest, UnsupportedTensor
from aqua_client.held_copies import PLAIN_BYTES
from aqua_client.pager import Pager
from tests.client.pagers import no_daemon, paging, park, random_bytes, two_gpus
from tests.fakes.session import MIB
from tests.nodes import wait_until

QUANTISED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}
DTYPES = sorted(
    {one for one in vars(torch).values() if isinstance(one, torch.dtype)} - QUANTISED, key=str
)


@pytest.fixture(params=["peer", "host"])
def pager(request: pytest.FixtureRequest) -> Iterator[Pager]:
    """On each tier."""
    with paging(two_gpus() if request.param == "peer" else no_daemon()) as made:
        yield made


def of_dtype(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    count = dtype.itemsize
    for length in shape:
        count *= length
    high = 2 if dtype is torch.bool else 256  # a bool has two values only
    noise = torch.randint(0, high, (count,), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ComplexHalf, which is experimental
        return noise.view(dtype).reshape(shape)


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two dense tensors of the same strides hold the same bits, NaN or not."""
    assert one.stride() == other.stride()
    count = one.numel()
    flat = [t.as_strided((count,), (1,)).view(torch.uint8) for t in (one, other)]
    return torch.equal(*flat)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dense_dtype_comes_back_bit_by_bit(pager: Pager, dtype: torch.dtype) -> None:
    """Whatever the bits mean."""
    tensor = of_dtype(dtype, 7, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = park(pager, tensor).fetch()
        out = torch.empty_like(tensor)
        assert park(pager, tensor).fetch(out=out) is out
    assert (again.dtype, again.shape) == (dtype, tensor.shape)
    assert same_bytes(again, tensor)
    assert same_bytes(out, tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.5),
        torch.zeros(0),
        torch.zeros(3, 0, 2),
        torch.randn(4, 5).t(),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(10)[3:4],
    ],
    ids=["0-d", "empty", "empty of 3 dimensions", "transposed", "channels last", "slice"],
)
def test_dense_layouts_come_back_with_their_strides(pager: Pager, tensor: torch.Tensor) -> None:
    """As clone() keeps them."""
    again = park(pager, tensor).fetch()
    assert again.stride() == tensor.clone().stride()
    assert torch.equal(again, tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(8, 6)[::2, ::3],
        torch.randn(1, 6).expand(5, 6),
        torch.randn(4, dtype=torch.complex64).conj(),
        torch.randn(4, dtype=torch.complex64).conj().imag,
        torch._neg_view(torch.randn(4)),
        torch._efficientzerotensor(4),
        torch.arange(100.0)[7:11],
    ],
    ids=["steps", "expanded", "conjugate", "negative", "dense negative", "no bytes", "a part"],
)
def test_other_layouts_come_back_with_their_values(pager: Pager, tensor: torch.Tensor) -> None:
    """Contiguous, with nothing lazy about them."""
    again = park(pager, tensor).fetch()
    assert torch.equal(again, tensor)
    assert not again.is_conj()
    assert not again.is_neg()


def test_a_tensor_longer_than_a_chunk_keeps_its_layout(pager: Pager) -> None:
    """It is copied in parts, which must fit together."""
    tensor = random_bytes(20 * MIB).reshape(1024, -1).t()
    again = park(pager, tensor).fetch()
    assert again.stride() == tensor.stride()
    assert torch.equal(again, tensor)


def test_a_large_tensor_with_gaps_is_copied_by_its_values(pager: Pager) -> None:
    """And fetched into one with other gaps."""
    tensor = random_bytes(36 * MIB).reshape(-1, 2)[:, 0]
    handle = park(pager, tensor)
    assert handle.nbytes == 18 * MIB
    out = torch.zeros(18 * MIB, 2, dtype=torch.uint8)[:, 1]
    assert torch.equal(handle.fetch(out=out), tensor)


def test_the_need_of_a_gradient_comes_back(pager: Pager) -> None:
    """On a leaf of its own: what led to the tensor is not kept."""
    weight = torch.nn.Parameter(torch.randn(3))
    result = weight * 2
    for tensor in (weight, result):
        again = park(pager, tensor).fetch()
        assert again.requires_grad
        assert again.is_leaf
        assert torch.equal(again, tensor)
    again.sum().backward()
    assert weight.grad is None


def test_the_source_may_change_and_go(pager: Pager) -> None:
    """Offloading copies."""
    tensor = torch.ones(1000)
    source = weakref.ref(tensor)
    handle = park(pager, tensor)
    tensor.zero_()
    del tensor
    assert source() is None
    assert torch.equal(handle.fetch(), torch.ones(1000))


def test_it_can_be_fetched_as_often_as_one_likes(pager: Pager) -> None:
    """Each time into memory of its own."""
    handle = park(pager, torch.arange(10))
    first, second = handle.fetch(), handle.fetch()
    first.zero_()
    assert torch.equal(second, torch.arange(10))
    assert torch.equal(handle.fetch(), torch.arange(10))


def test_it_works_within_and_across_inference_mode(pager: Pager) -> None:
    """A server offloads within, and whatever follows may be outside."""
    with torch.inference_mode():
        handle = park(pager, torch.arange(10.0) * 2)
        assert handle.fetch().is_inference()
    outside = handle.fetch()
    assert not outside.is_inference()
    assert torch.equal(park(pager, torch.ones(10)).fetch(), torch.ones(10))
    assert torch.equal(outside, torch.arange(10.0) * 2)


def test_the_default_device_is_no_matter(pager: Pager) -> None:
    """Programs set it to their GPU; slabs and buffers are where they are."""
    tensor = torch.ones(1000)
    with torch.device("meta"):
        assert torch.equal(park(pager, tensor).fetch(), tensor)


def test_out_is_written_with_its_own_strides(pager: Pager) -> None:
    """And returned."""
    tensor = torch.randn(4, 6)
    out = torch.zeros(6, 8)[:, ::2].t()
    assert park(pager, tensor).fetch(out=out) is out
    assert torch.equal(out, tensor)


def test_out_may_be_the_negative_of_its_bytes(pager: Pager) -> None:
    """What is seen through it is what was parked."""
    tensor = torch.randn(8)
    out = torch._neg_view(torch.zeros(8))
    park(pager, tensor).fetch(out=out)
    assert torch.equal(out, tensor)


@pytest.mark.parametrize("nbytes", [1, PLAIN_BYTES, PLAIN_BYTES + 1])
def test_only_the_bytes_of_out_are_written(pager: Pager, nbytes: int) -> None:
    """However few or many they are, and wherever both begin."""
    around, source = torch.zeros(nbytes + 10, dtype=torch.uint8), random_bytes(nbytes + 3)
    handles = [park(pager, source[start : start + nbytes]) for start in range(3)]
    for start, handle in enumerate(handles):
        around.zero_()
        handle.fetch(out=around[5:-5])
        assert torch.equal(around[5:-5], source[start : start + nbytes])
        assert not around[:5].any()
        assert not around[-5:].any()


@pytest.mark.parametrize("count", [10, PLAIN_BYTES])
def test_writing_to_out_is_a_write_for_torch(pager: Pager, count: int) -> None:
    """A backward pass that needs what was there says so, instead of being wrong."""
    needed, out = torch.ones(count, requires_grad=True), torch.ones(count)
    product = (needed * out).sum()
    handle = park(pager, torch.zeros(count))
    handle.fetch(out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with torch.inference_mode():
        out = torch.ones(count)
        assert torch.equal(handle.fetch(out=out), torch.zeros(count))
    with pytest.raises(RuntimeError, match="inference"):
        handle.fetch(out=out)


def test_an_out_that_does_not_fit_is_left_alone(pager: Pager) -> None:
    """The error names both shapes."""
    out = torch.ones(3)
    handle = park(pager, torch.zeros(4))
    with pytest.raises(InvalidRequest, match=r"\(3,\).*\(4,\)"):
        handle.fetch(out=out)
    assert torch.equal(out, torch.ones(3))


def test_a_released_handle_says_so(pager: Pager) -> None:
    """Releasing twice is no error; anything else is."""
    handle = park(pager, torch.ones(10))
    handle.release()
    handle.release()
    with pytest.raises(HandleReleased):
        handle.fetch()
    with pytest.raises(HandleReleased):
        _ = handle.tier
    assert "released" in repr(handle)
    assert pager.stats()["releases"] == 1


def test_a_handle_shows_what_it_holds(pager: Pager) -> None:
    """In its attributes and its repr."""
    handle = park(pager, torch.ones(2, 3, dtype=torch.float16))
    assert (handle.shape, handle.dtype, handle.nbytes) == ((2, 3), torch.float16, 12)
    assert handle.device == torch.device("cpu")
    assert repr(handle) == f"<OffloadedTensor (2, 3) torch.float16, 12 bytes, {handle.tier}>"


@pytest.mark.parametrize("how", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_handle_can_not_be_copied(pager: Pager, how: object) -> None:
    """Its bytes are this process's leases; the message says what to send instead."""
    assert callable(how)
    with pytest.raises(InvalidRequest, match="fetch"):
        how(park(pager, torch.ones(2)))


def test_a_class_that_does_not_exist_is_refused(pager: Pager) -> None:
    """With the two that do."""
    with pytest.raises(InvalidRequest, match='"store" or "cache"'):
        park(pager, torch.ones(2), keep="forever")


def test_a_tensor_that_can_not_be_parked_changes_nothing(pager: Pager) -> None:
    """Nothing is reserved for it."""
    with pytest.raises(UnsupportedTensor):
        park(pager, torch.eye(2).to_sparse())
    assert pager.stats()["peer_bytes"] == pager.stats()["host_bytes"] == 0


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_a_copy_that_fails_leaves_no_pin_and_no_byte(
    pager: Pager, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException]
) -> None:
    """Neither going out nor coming in; the handle works afterwards."""

    def fail(*_: object) -> None:
        raise fault("no copy")

    handle = park(pager, torch.ones(10))
    before = [pager.stats()[name] for name in ("peer_bytes", "host_bytes")]
    with monkeypatch.context() as patch:
        patch.setattr(copying, "write", fail)
        patch.setattr(copying, "read", fail)
        with pytest.raises(fault, match="no copy"):
            park(pager, torch.ones(1000))
        with pytest.raises(fault, match="no copy"):
            handle.fetch()
    assert [pager.stats()[name] for name in ("peer_bytes", "host_bytes")] == before
    assert torch.equal(handle.fetch(), torch.ones(10))
    assert pager.stats()["fetches"] == 1
    assert all(place.pins == 0 for place in handle._stored.places)


def test_dropped_handles_in_a_cycle_are_collected_inside_any_operation(pager: Pager) -> None:
    """Garbage collection may run inside the library's own lock: a finalizer only takes a note."""
    for _ in range(200):
        ring: list[object] = [park(pager, torch.ones(1000))]
        ring.append(ring)
    del ring
    wait_until(lambda: int(str(pager.stats()["releases"])) > 0 or _churn(pager), what="collected")


def _churn(pager: Pager) -> bool:
    import gc

    gc.collect()
    park(pager, torch.ones(1)).release()
    return False
