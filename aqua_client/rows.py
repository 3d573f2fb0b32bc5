"""Copies scattered rows of a tensor to and from ranges of memory, in one step a range.

A row is a block: contiguous bytes, wherever its neighbours are. On the CPU numpy moves whole rows;
on other devices, and to gather on the CPU too where that is quicker, torch moves the widest integers
that everything is aligned to, several times faster than single bytes. On CUDA the streams do it by
addresses, where they know a quicker way than torch's. Does not cover which ranges these are (`pager`)
and what a pool is (`pools`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.autograd.graph import increment_version

from aqua_client.copying import CHUNK_BYTES, Span
from aqua_client.errors import InvalidRequest, UnsupportedTensor
from aqua_client.layouts import layout_of
from aqua_client.streams import Enqueuer

_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
_WIDEST_BYTES = max(_WORDS)


class Rows:
    """The blocks of a tensor `(n_blocks, *block_shape)`, to be copied by their indices."""

    def __init__(
        self, cache: torch.Tensor, block_shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        """Look at *cache* as rows.

        Raises:
            UnsupportedTensor: it has no bytes of its own, or its blocks are not contiguous.
            InvalidRequest: it has blocks of another shape or dtype.
        """
        layout_of(cache)
        if cache.dtype != dtype or cache.shape[1:] != block_shape or not cache.dim():
            raise InvalidRequest(
                f"the cache has shape {tuple(cache.shape)} and {cache.dtype}, the pool's blocks "
                f"have {block_shape} and {dtype}: expected (n_blocks, *block_shape)"
            )
        length = math.prod(block_shape)
        self.count = cache.shape[0]
        self.nbytes = length * dtype.itemsize  # of one
        self.device = cache.device
        step = cache.stride(0) if self.count > 1 else length
        if cache.is_conj() or cache.is_neg() or not _is_packed(cache) or step < length:
            raise UnsupportedTensor(
                f"the blocks of a cache of shape {tuple(cache.shape)} and strides "
                f"{cache.stride()} are not contiguous rows of their own: a block must be one "
                "range of memory, so the first dimension must be the blocks'"
            )
        rows = cache.detach().as_strided((self.count, length), (step, 1))
        begin = int(rows.storage_offset()) * dtype.itemsize
        self._word = _word(self.nbytes, step * dtype.itemsize, begin, rows.data_ptr())
        self._bytes = rows.view(torch.uint8)

    def write(
        self, ids: torch.Tensor, spans: Sequence[Span], streams: Enqueuer | None = None
    ) -> None:
        """Copy the rows *ids*, on the CPU, into *spans*, in this order."""
        if streams is not None and streams.concern(self.device):
            pieces = self.pieces(ids, spans)
            if len(pieces) and streams.copy(self.device, pieces[:, [1, 0, 2]], may_torch=True):
                return
        self.write_by_torch(ids, spans, streams)

    def write_by_torch(
        self, ids: torch.Tensor, spans: Sequence[Span], streams: Enqueuer | None
    ) -> None:
        """The same, gathered by index."""
        places = self._placed(ids, streams)
        for part in _parts(spans, self.nbytes, self._most_bytes):
            there = part.span.memory.view(torch.uint8)[part.offset : part.offset + part.nbytes]
            if part.is_whole:
                self._gather(places[part.first : part.first + part.count], there)
            else:
                row = self._bytes[int(ids[part.first])]
                there.copy_(row[part.skipped : part.skipped + part.nbytes])

    def read(
        self, spans: Sequence[Span], ids: torch.Tensor, streams: Enqueuer | None = None
    ) -> None:
        """Copy *spans*, in this order, into the rows *ids*, which are on the CPU and all different."""
        has_version = not self._bytes.is_inference()
        may_write = has_version or torch.is_inference_mode_enabled()
        if streams is not None and streams.concern(self.device) and may_write:
            pieces = self.pieces(ids, spans)
            if len(pieces) and streams.copy(self.device, pieces, may_torch=True):
                if has_version:
                    increment_version(self._bytes)  # as torch's own copies do
                return
        self.read_by_torch(spans, ids, streams)

    def read_by_torch(
        self, spans: Sequence[Span], ids: torch.Tensor, streams: Enqueuer | None
    ) -> None:
        """The same, scattered by index."""
        places = self._placed(ids, streams)
        for part in _parts(spans, self.nbytes, self._most_bytes):
            there = part.span.memory.view(torch.uint8)[part.offset : part.offset + part.nbytes]
            if part.is_whole:
                self._scatter(there, places[part.first : part.first + part.count])
            else:
                row = self._bytes[int(ids[part.first])]
                row[part.skipped : part.skipped + part.nbytes].copy_(there)

    def pieces(self, ids: torch.Tensor, spans: Sequence[Span]) -> npt.NDArray[np.uint64]:
        """Each row's address, or a part's, its place's in *spans*, and its bytes.

        No pieces: they are not all in slabs that are open on the rows' device. To pinned memory of the host
        one copy of what torch has gathered is quicker than any of these.
        """
        opened = {None if one.memory.is_pinned else one.memory.opened_on for one in spans}
        is_elsewhere = self.device.type == "cuda" and opened != {self.device.index}
        if None in opened or is_elsewhere:
            return np.empty((0, 3), dtype=np.uint64)
        begin, step = self._bytes.data_ptr(), self._bytes.stride(0)
        rows = ids.numpy().astype(np.uint64) * np.uint64(step) + np.uint64(begin)
        found = []
        for part in _parts(spans, self.nbytes, sys.maxsize):
            count = max(1, part.count)
            piece = np.empty((count, 3), dtype=np.uint64)
            piece[:, 2] = part.nbytes // count
            piece[:, 0] = rows[part.first : part.first + count] + np.uint64(part.skipped)
            piece[:, 1] = np.arange(count, dtype=np.uint64) * piece[0, 2]
            piece[:, 1] += np.uint64(part.span.memory.pointer + part.offset)
            found.append(piece)
        return np.concatenate(found) if found else np.empty((0, 3), dtype=np.uint64)

    def _placed(self, ids: torch.Tensor, streams: Enqueuer | None) -> torch.Tensor:
        """The ids where the rows are: sent there once, and nobody waits for that."""
        return ids if streams is None else streams.upload(self.device, ids)

    @property
    def _most_bytes(self) -> int:
        """Of one step. A device's own steps hold up nobody, and each costs a call."""
        return CHUNK_BYTES if self.device.type == "cpu" else sys.maxsize

    def _gather(self, ids: torch.Tensor, there: torch.Tensor) -> None:
        is_on_cpu = self.device.type == there.device.type == "cpu"
        if is_on_cpu and self._common_word(there) < _WIDEST_BYTES:
            np.take(self._records(self._bytes), ids.numpy(), out=self._records(there), mode="clip")
        else:  # of the widest words index_select moves 1,000 rows of 32 KiB in a tenth less time
            self._gather_by_torch(ids, there)

    def _gather_by_torch(self, ids: torch.Tensor, there: torch.Tensor) -> None:
        rows, packed = self._in_words(there)
        ids = ids.to(self.device)
        if packed.device == rows.device:
            torch.index_select(rows, 0, ids, out=packed)
        else:  # gathered where the rows are, so that one copy crosses
            packed.copy_(rows.index_select(0, ids))

    def _scatter(self, there: torch.Tensor, ids: torch.Tensor) -> None:
        if self.device.type == there.device.type == "cpu":
            self._records(self._bytes)[ids.numpy()] = self._records(there)
            if not self._bytes.is_inference():
                increment_version(self._bytes)  # as torch's own copies do
        else:
            self._scatter_by_torch(there, ids)

    def _scatter_by_torch(self, there: torch.Tensor, ids: torch.Tensor) -> None:
        rows, packed = self._in_words(there)
        rows.index_copy_(0, ids.to(self.device), packed.to(self.device))

    def _records(self, there: torch.Tensor) -> npt.NDArray[np.void]:
        """Each row as one item, which numpy copies by `memcpy`: the quickest there is on the CPU."""
        record = np.dtype((np.void, self.nbytes))
        return there.numpy().reshape(-1, self.nbytes).view(record)[:, 0]

    def _common_word(self, there: torch.Tensor) -> int:
        return math.gcd(self._word, there.storage_offset())

    def _in_words(self, there: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        word = _WORDS[self._common_word(there)]
        return self._bytes.view(word), there.view(word).view(-1, self.nbytes // word.itemsize)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What one step copies: whole rows, or a piece of one that lies across two spans."""

    span: Span
    offset: int  # of these bytes in the span's memory
    nbytes: int
    first: int  # which of the rows asked for
    count: int
    skipped: int  # bytes of the first row that lie before
    is_whole: bool


def _parts(spans: Sequence[Span], row_bytes: int, most_bytes: int) -> Iterator[_Part]:
    """The rows in order, as few steps as there can be; none is much longer than *most_bytes*."""
    most = max(1, most_bytes // row_bytes)
    position = 0  # in the bytes of all rows asked for
    for span in spans:
        offset, end = span.offset, span.offset + span.nbytes
        while offset < end:
            first, skipped = divmod(position, row_bytes)
            count = 0 if skipped else min(most, (end - offset) // row_bytes)
            nbytes = count * row_bytes or min(row_bytes - skipped, end - offset)
            yield _Part(
                span=span,
                offset=offset,
                nbytes=nbytes,
                first=first,
                count=count,
                skipped=skipped,
                is_whole=count > 0,
            )
            offset += nbytes
            position += nbytes


def _word(*numbers: int) -> int:
    """The widest integer, in bytes, that all of these are multiples of."""
    return math.gcd(_WIDEST_BYTES, *numbers)


def _is_packed(cache: torch.Tensor) -> bool:
    """Whether each block is one range of memory, in order."""
    expected = 1
    for length, step in zip(reversed(cache.shape[1:]), reversed(cache.stride()[1:]), strict=True):
        if length != 1 and step != expected:
            return False
        expected *= length
    return True
