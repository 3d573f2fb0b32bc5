"""What is read and written inside transformers' engine, where 5.17 and 5.23 differ or hide it.

A *group* is the layers that share one table of blocks: most models have one. Up to 5.17 a block lies
in two tensors of each layer (keys, values), later in one place; both are caches of `(n_blocks,
*block_shape)` to a block pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import torch
import transformers
from transformers.generation.continuous_batching.requests import RequestStatus

from aqua_client.errors import InvalidRequest

if TYPE_CHECKING:
    from transformers.generation.continuous_batching.cache import PagedAttentionCache
    from transformers.generation.continuous_batching.continuous_api import (
        ContinuousBatchingManager,
        ContinuousBatchProcessor,
    )
    from transformers.generation.continuous_batching.requests import (
        FutureRequestState,
        RequestState,
    )

    Scheduled = tuple[list[FutureRequestState] | None, bool, int, int]  # what a batch is made from

OLDEST, NEWEST = (5, 17), (5, 23)  # tested; what is read here is promised by nobody
Tables = Mapping[str, Mapping[str, Sequence[int]]]  # by request, then by group


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGroup:
    """The layers that share a table of blocks."""

    name: str
    caches: tuple[torch.Tensor, ...]  # a block id names a block in each
    tokens_per_block: int
    is_appended: bool  # a full block is never written to again; not so where a window slides
    tables: Mapping[str, Sequence[int]]  # block ids by request

    def table_of(self, request_id: str) -> Sequence[int]:
        """The blocks that a request has, in the order of its tokens."""
        return self.tables.get(request_id, ())

    def used_blocks(self, tokens: int, table: Sequence[int]) -> int:
        """How many of the blocks in *table* have something in them."""
        return -(-tokens // self.tokens_per_block) if self.is_appended else len(table)

    def full_blocks(self, tokens: int) -> int:
        """How many blocks of a request will not be written to again."""
        return tokens // self.tokens_per_block if self.is_appended else 0


def check_version() -> None:
    """Raise InvalidRequest for a transformers that nobody tried."""
    found = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if not OLDEST <= found <= NEWEST:
        oldest, newest = (".".join(map(str, one)) for one in (OLDEST, NEWEST))
        raise InvalidRequest(
            f"transformers {transformers.__version__} is not supported: {oldest} to {newest} are"
        )


def kv_groups(cache: PagedAttentionCache) -> tuple[KvGroup, ...]:
    """The groups of *cache*."""
    if not _is_older(cache):
        return tuple(
            KvGroup(
                name=name,
                caches=(allocator._copy_view,),
                tokens_per_block=allocator.tokens_per_page,
                is_appended=allocator.layer_type == "full_attention",
                tables=allocator.block_table,
            )
            for name, allocator in cache.cache_allocators.items()
        )
    return tuple(_older_groups(cast("_OlderCache", cache)))


def _older_groups(cache: _OlderCache) -> Iterable[KvGroup]:
    shape = (-1, cache.block_size, cache.num_key_value_heads, cache.head_dim)
    layers = zip(cache.key_cache, cache.value_cache, strict=True)
    caches = tuple(one.view(shape) for layer in layers for one in layer)
    for index, manager in enumerate(cache.group_cache_managers):
        yield KvGroup(
            name=str(index),
            caches=caches,
            tokens_per_block=cache.block_size,
            is_appended=type(manager).__name__ == "FullAttentionCacheAllocator",
            tables=manager.block_table,
        )


def note_restored(cache: PagedAttentionCache, scheduled: FutureRequestState) -> None:
    """Say to the engine that a request's blocks have their bytes again.

    Its full blocks are new to the prefix sharing, which has to hash them.
    """
    state = scheduled.state
    state.is_cpu_offloaded = False
    if _is_older(cache):
        _note_older_restored(cast("_OlderCache", cache), scheduled)
    elif cache.use_prefix_sharing:
        counts = scheduled.complete_blocks
        for name, allocator in cache.cache_allocators.items():
            full = state.position_offset // allocator.tokens_per_page
            if full:
                counts[name] = counts.get(name, 0) + full


def _note_older_restored(cache: _OlderCache, scheduled: FutureRequestState) -> None:
    state = scheduled.state
    tables = (
        manager.block_table.get(state.request_id, ()) for manager in cache.group_cache_managers
    )
    state.allocated_blocks = max(map(len, tables))
    if cache.allow_block_sharing:
        older = cast("_OlderScheduled", scheduled)
        older.complete_blocks += state.position_offset // cache.block_size


def capacity_blocks(cache: PagedAttentionCache) -> int:
    """How many blocks a cache of one group has."""
    return int(cache.num_blocks)


def capacity_tokens(cache: PagedAttentionCache) -> int:
    """How many tokens fit into it, of one request or of several."""
    return capacity_blocks(cache) * kv_groups(cache)[0].tokens_per_block


def table_tokens(cache: PagedAttentionCache) -> int:
    """How many a request may have for its decoding to be read by its own table; 0: there is none."""
    return int(cache.max_blocks_per_request) * kv_groups(cache)[0].tokens_per_block


def free_blocks(cache: PagedAttentionCache) -> int:
    """How many of them no request has; some may still be kept for a prefix that comes again."""
    if _is_older(cache):
        return cast("_OlderCache", cache).get_num_free_blocks()
    (allocator,) = cache.cache_allocators.values()
    pool = cache.pool
    return (
        pool.num_free_sectors * allocator.blocks_per_sector
        + pool.count_free_blocks(allocator.index)
        + len(allocator.ledger.cached_blocks)
    )


def kv_bytes(cache: PagedAttentionCache) -> tuple[int, int]:
    """How much of the cache requests have, and how much there is."""
    groups = kv_groups(cache)
    if _is_older(cache):
        block = sum(one.nbytes for one in groups[0].caches) // len(groups[0].caches[0])
        total = cache.num_blocks
        return (total - cast("_OlderCache", cache).get_num_free_blocks()) * block, total * block
    total = cache.num_sectors * cache.bytes_per_sector
    free = int(cache.compute_free_capacity(relative=False))
    kept = sum(
        len(a.ledger.cached_blocks) * a.bytes_per_block for a in cache.cache_allocators.values()
    )
    return total - free - kept, total


def make_room(cache: PagedAttentionCache, blocks: int) -> None:
    """Let go of blocks that are kept for prefixes, where *blocks* are to be had."""
    if not _is_older(cache):  # an older one does so by itself
        (allocator,) = cache.cache_allocators.values()
        if blocks > free_blocks(cache) - len(allocator.ledger.cached_blocks):
            cache.evict_cached_blocks()
            cache.pool.try_to_free_sectors()


def kv_storages(cache: PagedAttentionCache) -> list[torch.UntypedStorage]:
    """Where the cache's bytes are: resized to nothing and back, it is the same cache, but empty."""
    if _is_older(cache):
        older = cast("_OlderCache", cache)
        return [one.untyped_storage() for one in (*older.key_cache, *older.value_cache)]
    return [cache.cache_tensor.untyped_storage()]


def forget_prefixes(cache: PagedAttentionCache) -> None:
    """Keep no block for a prefix that comes again."""
    if _is_older(cache):
        # It forgets as many as somebody needs: all of those that no request has.
        blocks = cast("_OlderCache", cache)._block_manager
        blocks.has_enough_free_blocks(blocks.num_free_blocks)
    else:
        cache.evict_cached_blocks()
        cache.pool.try_to_free_sectors()


def zero(cache: PagedAttentionCache) -> None:
    """Have it as it was made: what padding reads has to be 0."""
    if _is_older(cache):
        older = cast("_OlderCache", cache)
        for one in (*older.key_cache, *older.value_cache):
            one.zero_()
    else:
        cache.cache_tensor.zero_()


def make_pending(state: RequestState) -> None:
    """Have an active request wait again, to go on where it was once its cache is back."""
    state.allocated_blocks = 0
    if state.status == RequestStatus.DECODING:
        state.remaining_prefill_tokens = state.tokens_to_process[:]
    state._status = RequestStatus.PENDING  # the setter would note a second start


def make_new(state: RequestState) -> RequestState:
    """The same request, to be computed again with what it has generated; *state* is at its end."""
    again = state.create_equivalent_initial_request()
    state._status = RequestStatus.FINISHED
    return again


def processor_of(manager: ContinuousBatchingManager) -> ContinuousBatchProcessor:
    """The manager's batch processor, made if need be; `start` takes the one that is there."""
    if manager.batch_processor is None:
        manager.batch_processor = manager._create_batch_processor()
    return manager.batch_processor


class _OlderManager(Protocol):
    """A group, up to 5.17."""

    block_table: Mapping[str, Sequence[int]]


class _OlderBlocks(Protocol):
    """Who has which block, up to 5.17."""

    num_free_blocks: int

    def has_enough_free_blocks(self, n_blocks: int, /) -> bool: ...


class _OlderCache(Protocol):
    """The cache, up to 5.17."""

    _block_manager: _OlderBlocks
    key_cache: Sequence[torch.Tensor]  # one for each layer of a group
    value_cache: Sequence[torch.Tensor]
    group_cache_managers: Sequence[_OlderManager]
    block_size: int
    num_key_value_heads: int
    head_dim: int
    allow_block_sharing: bool

    def get_num_free_blocks(self) -> int: ...


class _OlderScheduled(Protocol):
    """A request of the next batch, up to 5.17."""

    complete_blocks: int


def _is_older(cache: PagedAttentionCache) -> bool:
    return not hasattr(cache, "cache_allocators")
