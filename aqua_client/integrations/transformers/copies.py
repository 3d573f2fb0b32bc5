"""What of one request's KV cache is in leases: full blocks, written ahead, and the tail.

A full block of most layers is never written to again, so its copy is good for the request's whole
life: it is written once, beside the computing, and read as often as the request comes back. What
has to be copied while a request gives way is its *tail*, the blocks that were not full at the last
step. Where a window slides over the layers every block is tail.

Does not cover when to write: that is `paging`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import torch

from aqua_client.copying import Memory, Range
from aqua_client.errors import AquaError
from aqua_client.integrations.transformers.engine import KvGroup
from aqua_client.pools import BlockPool, Slots
from aqua_client.rows import Rows


class Pools(Protocol):
    """Makes block pools: a `Client`, or `aqua_client` itself."""

    def pool(self, block_shape: Sequence[int], dtype: torch.dtype, /) -> BlockPool:
        """For blocks of that shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Copies of some blocks of one group, in order: one part for each of its caches."""

    parts: tuple[Slots, ...]
    count: int

    @property
    def nbytes(self) -> int:
        """Their size."""
        return sum(part.nbytes for part in self.parts)

    @property
    def is_lost(self) -> bool:
        """Whether the bytes are gone, with the GPU or keeper that had them."""
        return any(part.tier == "lost" for part in self.parts)

    def release(self) -> None:
        """Give them back."""
        for part in self.parts:
            part.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """Blocks of one group that are near, in order: one tensor for each of its caches."""

    tensors: tuple[torch.Tensor, ...]

    def used_on(self, stream: torch.cuda.Stream) -> None:
        """Their memory is nobody else's before *stream* is through with them."""
        for tensor in self.tensors:
            tensor.record_stream(stream)


class GroupStore:
    """Copies blocks of one group into leases and back."""

    def __init__(self, group: KvGroup, pools: Pools) -> None:
        self.group = group
        one = group.caches[0]
        self._pool = pools.pool(one.shape[1:], one.dtype)
        self.block_nbytes = self._pool.block_nbytes * len(group.caches)

    def store(self, block_ids: Sequence[int]) -> Blocks:
        """Copy these blocks out: all, or none.

        Raises:
            InsufficientMemory: nowhere is room.
        """
        ids = torch.as_tensor(block_ids)
        parts: list[Slots] = []
        try:
            for cache in self.group.caches:
                parts.append(self._pool.store(cache, ids))  # noqa: PERF401 - kept if one fails
        except BaseException:
            for part in parts:
                part.release()
            raise
        return Blocks(parts=tuple(parts), count=len(block_ids))

    def load(
        self,
        blocks: Blocks,
        block_ids: Sequence[int],
        caches: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """Copy blocks into these of the cache (or of *caches*), as often as you like.

        Raises:
            LeaseLost: the bytes are gone.
        """
        ids = torch.as_tensor(block_ids)
        for cache, part in zip(caches or self.group.caches, blocks.parts, strict=True):
            self._pool.load(part, cache, ids)

    def place(self, staged: Staged, block_ids: Sequence[int]) -> None:
        """Copy what is near into these blocks of the cache."""
        ids = torch.as_tensor(block_ids)
        for cache, tensor in zip(self.group.caches, staged.tensors, strict=True):
            near = Range(Memory(tensor.view(-1).view(torch.uint8)), 0, tensor.nbytes)
            Rows(cache, tuple(cache.shape[1:]), cache.dtype).read([near], ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """All of one request's blocks of one group, as it was parked: any thread may read them."""

    store: GroupStore
    pieces: tuple[Blocks, ...]  # in order

    @property
    def nbytes(self) -> int:
        """Their size."""
        return sum(one.nbytes for one in self.pieces)

    def stage(self) -> Staged:
        """Copy them to where the cache is, but not into it.

        Raises:
            LeaseLost, HandleReleased: some of it is gone.
        """
        count = sum(one.count for one in self.pieces)
        caches = self.store.group.caches
        near = tuple(one.new_empty((count, *one.shape[1:])) for one in caches)
        begin = 0
        for blocks in self.pieces:
            self.store.load(blocks, range(begin, begin + blocks.count), near)
            begin += blocks.count
        return Staged(tensors=near)


class Copies:
    """One request's blocks of one group."""

    def __init__(self, store: GroupStore) -> None:
        self._store = store
        self._full: list[tuple[Future[Blocks], int]] = []  # in order, each with its count
        self._tail: Blocks | None = None

    @property
    def full_count(self) -> int:
        """How many blocks, from the first on, are written or being written."""
        return sum(count for _, count in self._full)

    def write(self, written: Future[Blocks], count: int) -> None:
        """The next *count* full blocks are being written."""
        self._full.append((written, count))

    def park(self, table: Sequence[int], tokens: int) -> int:
        """Write what is not written of *tokens* tokens; the bytes that had to be copied.

        Raises:
            InsufficientMemory: nowhere is room.
        """
        self._settle()
        used = self._store.group.used_blocks(tokens, table)
        dirty = table[self.full_count : used]
        self._tail = self._store.store(dirty) if dirty else None
        return 0 if self._tail is None else self._tail.nbytes

    def parked(self) -> Parked:
        """What `park` left of it."""
        return Parked(store=self._store, pieces=tuple(self._all()))

    def restore(self, table: Sequence[int], staged: Staged | None = None) -> int:
        """Copy everything, or what was *staged* of it, to where *table* says; the bytes.

        Raises:
            LeaseLost: some of it is gone.
        """
        begin = nbytes = 0
        for blocks in self._all():
            if staged is None:
                self._store.load(blocks, table[begin : begin + blocks.count])
            begin += blocks.count
            nbytes += blocks.nbytes
        if staged is not None:
            self._store.place(staged, table[:begin])
        if self._tail is not None:  # it will be written to again
            self._tail.release()
            self._tail = None
        return nbytes

    @property
    def is_lost(self) -> bool:
        """Whether some of what is parked is gone."""
        return any(blocks.is_lost for blocks in self._all())

    def release(self) -> None:
        """Give all of it back; what is being written goes as soon as it is."""
        for future, _ in self._full:
            future.cancel()
            future.add_done_callback(_release)
        self._full.clear()
        if self._tail is not None:
            self._tail.release()
            self._tail = None

    def _all(self) -> list[Blocks]:
        """Of a parked request: all of it, in order."""
        tail = [] if self._tail is None else [self._tail]
        return [future.result() for future, _ in self._full] + tail

    def _settle(self) -> None:
        """Wait for what is being written. What failed, and what came after it, is tail."""
        for index, (future, _) in enumerate(self._full):
            try:
                future.result()
            except AquaError:
                for later, _ in self._full[index:]:
                    later.add_done_callback(_release)
                del self._full[index:]
                return


def _release(written: Future[Blocks]) -> None:
    with suppress(BaseException):  # cancelled, or failed: then there is nothing
        written.result().release()
