"""Rows of a tensor go to any ranges of memory and come back bit by bit, however these are cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aqua_client import rows
from aqua_client.copying import Memory
from aqua_client.errors import InvalidRequest, UnsupportedTensor
from aqua_client.rows import Rows
from tests.client.pagers import random_bytes

DTYPES = [
    torch.float32,
    torch.float16,
    torch.uint8,
    torch.complex128,
    torch.float8_e5m2,
    torch.bool,
]


@dataclass
class Range:
    """A range of some memory."""

    memory: Memory
    offset: int
    nbytes: int


def ranges(lengths: Sequence[int]) -> list[Range]:
    """Buffers of their own, with bytes before and after that must stay as they are."""
    return [Range(Memory.of_host(length + 1024), 512, length) for length in lengths if length]


def cut(nbytes: int, at: Sequence[int]) -> list[int]:
    """The lengths between the cuts."""
    ends = sorted({0, nbytes, *(one % (nbytes + 1) for one in at)})
    return [after - before for before, after in pairwise(ends)]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


@given(
    count=st.integers(1, 12),
    length=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    gap=st.integers(0, 3),
    data=st.data(),
)
def test_rows_come_back_however_they_are_cut(
    count: int, length: int, dtype: torch.dtype, gap: int, data: st.DataObject
) -> None:
    """Any width, any dtype, gaps between the rows, ranges that end inside of one."""
    ids = torch.tensor(data.draw(st.permutations(range(count)))[: data.draw(st.integers(1, count))])
    whole = (random_bytes(count * (length + gap) * dtype.itemsize) % 2).view(dtype)
    cache = whole.view(count, length + gap)[:, :length]
    nbytes = ids.numel() * length * dtype.itemsize
    spans = ranges(cut(nbytes, data.draw(st.lists(st.integers(0, nbytes), max_size=4))))
    for span in spans:
        span.memory.view(torch.uint8).fill_(77)
    Rows(cache, (length,), dtype).write(ids, spans)
    stored = [s.memory.view(torch.uint8)[s.offset : s.offset + s.nbytes] for s in spans]
    assert torch.equal(torch.cat(stored), bits(cache[ids]).flatten())
    outside = [bits(s.memory.view(torch.uint8)[512 + s.nbytes :]) for s in spans]
    assert all(bool((one == 77).all()) for one in outside)
    target = torch.zeros_like(whole).view(count, length + gap)
    Rows(target[:, :length], (length,), dtype).read(spans, ids)
    assert torch.equal(bits(target[:, :length][ids]), bits(cache[ids]))
    assert int(bits(target).sum()) == int(bits(cache[ids]).sum())  # nothing else was written


def test_torch_moves_rows_as_numpy_does() -> None:
    """On devices that numpy knows nothing of; as wide as everything is aligned to."""
    for length in (64, 12, 6, 5):
        cache = random_bytes(10 * length).view(10, length)
        seen, spans = Rows(cache, (length,), torch.uint8), ranges([4 * length])
        ids = torch.tensor([7, 0, 9, 3])
        there = spans[0].memory.view(torch.uint8)[512 : 512 + 4 * length]
        rows, packed = seen._in_words(there)
        assert rows.dtype.itemsize == packed.dtype.itemsize == {64: 8, 12: 4, 6: 2, 5: 1}[length]
        seen._gather_by_torch(ids, there)
        assert torch.equal(there.view(4, length), cache[ids])
        target = torch.zeros_like(cache)
        Rows(target, (length,), torch.uint8)._scatter_by_torch(there, ids)
        assert torch.equal(target[ids], cache[ids])
        assert torch.equal(target.sum(), cache[ids].sum())


def test_a_write_is_seen_by_autograd() -> None:
    """As any write in place: what was saved for a gradient is not what it was."""
    cache = torch.zeros(4, 8)
    before = cache._version
    spans = ranges([32])
    Rows(cache, (8,), torch.float32).read(spans, torch.tensor([2]))
    assert cache._version > before


def test_long_runs_are_cut_into_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads get their turn; the rows are the same."""
    monkeypatch.setattr(rows, "CHUNK_BYTES", 1000)
    cache = random_bytes(100 * 64).view(100, 64)
    ids = torch.arange(99, -1, -1)
    spans = ranges([6400])
    Rows(cache, (64,), torch.uint8).write(ids, spans)
    target = torch.zeros_like(cache)
    Rows(target, (64,), torch.uint8).read(spans, torch.arange(100))
    assert torch.equal(target, cache.flip(0))


def test_a_row_longer_than_a_chunk_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is at least one row."""
    monkeypatch.setattr(rows, "CHUNK_BYTES", 10)
    cache = random_bytes(3 * 64).view(3, 64)
    spans = ranges([128])
    Rows(cache, (64,), torch.uint8).write(torch.tensor([2, 0]), spans)
    assert torch.equal(spans[0].memory.view(torch.uint8)[512:640], cache[[2, 0]].flatten())


@pytest.mark.parametrize(
    "cache",
    [torch.zeros(4, 3), torch.zeros(4, 2, dtype=torch.int32), torch.tensor(1.0), torch.zeros(8)],
    ids=["shape", "dtype", "0-d", "too few dimensions"],
)
def test_a_cache_of_other_blocks_is_refused(cache: torch.Tensor) -> None:
    """The message says what was expected."""
    with pytest.raises(InvalidRequest, match="n_blocks"):
        Rows(cache, (2,), torch.float32)


@pytest.mark.parametrize(
    "cache",
    [
        torch.zeros(2, 3, 4).transpose(1, 2),
        torch.zeros(4, 3, 4)[:, :, ::2].view(4, 3, 2).expand(4, 3, 2),
        torch.zeros(1, 4, 3).expand(5, 4, 3),
        torch.zeros(2, 4, 3, dtype=torch.complex64).conj(),
    ],
    ids=["transposed", "steps", "the same block", "conjugate"],
)
def test_blocks_that_are_not_ranges_of_their_own_are_refused(cache: torch.Tensor) -> None:
    """They would be copied element by element, or over each other."""
    with pytest.raises(UnsupportedTensor, match="contiguous rows"):
        Rows(cache, tuple(cache.shape[1:]), cache.dtype)


def test_a_cache_without_bytes_is_refused() -> None:
    """As offloading it would be."""
    with pytest.raises(UnsupportedTensor):
        Rows(torch.zeros(3, 4, device="meta"), (4,), torch.float32)


def test_a_parameter_can_be_read_into() -> None:
    """What is copied is no part of a gradient."""
    cache = torch.nn.Parameter(torch.randn(4, 8))
    spans = ranges([64])
    before = cache.detach().clone()
    Rows(cache, (8,), torch.float32).write(torch.tensor([1, 3]), spans)
    Rows(cache, (8,), torch.float32).read(spans, torch.tensor([0, 2]))
    assert torch.equal(cache.detach()[[0, 2]], before[[1, 3]])
