"""Block pools: the scattered blocks of a paged KV cache, parked and brought back in one step.

    pool = client.pool((2, 16, 8, 64), torch.float16)
    slots = pool.store(cache, [4, 17, 5])   # cache: (n_blocks, 2, 16, 8, 64); free them at once
    pool.load(slots, cache, [8, 2, 31])     # wherever there is room when they are needed again
    slots.release()

What is parked is kept like any tensor: revokes move it, bytes come back exactly. Does not cover
how blocks are gathered (`rows`) and where their bytes are (`pager`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import torch

from aqua_client import calibrating, enqueuing, transfers
from aqua_client.errors import HandleReleased, InvalidRequest
from aqua_client.pager import Pager
from aqua_client.records import SafetyClass
from aqua_client.rows import Rows
from aqua_client.slabs import Place, Stored

BlockIds = Sequence[int] | torch.Tensor


class BlockPool:
    """Parks blocks of one shape and dtype. Made by `Client.pool`; threads may share it."""

    def __init__(
        self,
        pager: Pager,
        block_shape: Sequence[int],
        dtype: torch.dtype,
        safety: SafetyClass,
    ) -> None:
        """Holds nothing by itself.

        Raises:
            InvalidRequest: blocks of that shape have no bytes.
        """
        try:
            shape = tuple(operator.index(one) for one in block_shape)
        except TypeError as error:
            raise InvalidRequest(f"block_shape={block_shape!r} is not allowed: {error}") from None
        if min(shape, default=1) < 1:
            raise InvalidRequest(f"block_shape={shape} is not allowed: lengths of 1 and more")
        self._pager = pager
        self._safety = safety
        self.block_shape = shape
        self.dtype = dtype
        self.block_nbytes = math.prod(shape) * dtype.itemsize

    def store(self, cache: torch.Tensor, block_ids: BlockIds) -> Slots:
        """Copy these blocks of *cache* out; their memory in it may be used again at once.

        *cache* is `(n_blocks, *block_shape)`, each block one range of memory. Ids on the CPU are
        quickest; on a GPU they are waited for.

        Raises:
            InvalidRequest: an id is not in the cache, or its shape or dtype is not the pool's.
            UnsupportedTensor: its blocks are not contiguous.
            InsufficientMemory: nowhere is room; nothing is stored.
        """
        rows = Rows(cache, self.block_shape, self.dtype)
        ids = _checked(block_ids, rows.count)
        nbytes = ids.numel() * self.block_nbytes
        slots = transfers.store(
            self._pager,
            [nbytes],
            [rows.device],
            safety=self._safety,
            copy=lambda places: self._write(cache, rows, ids, places[0]),
            make=lambda stored: Slots(self, self._pager, stored[0], ids.numel()),
        )
        if slots.tier == "peer":
            calibrating.begin_once(self._pager, rows.device, self._safety)
        return slots

    def load(self, slots: Slots, cache: torch.Tensor, block_ids: BlockIds) -> None:
        """Copy what was stored into these blocks of *cache*, in the order it was stored in.

        Any cache will do whose blocks are the pool's. As often as you like until released.

        Raises:
            InvalidRequest: not one id for each block; one twice, or not in the cache; or the
                cache's shape or dtype is not the pool's.
            UnsupportedTensor: its blocks are not contiguous.
            HandleReleased: the slots were released, or the client closed.
            LeaseLost: the bytes are gone.
        """
        if slots.pool is not self:
            raise InvalidRequest(
                "these slots are of another pool: load them with the one that stored"
            )
        rows = Rows(cache, self.block_shape, self.dtype)
        ids = _checked(block_ids, rows.count)
        if ids.numel() != len(slots):
            raise InvalidRequest(f"{ids.numel()} block ids for {len(slots)} stored blocks")
        if ids.numel() > 1 and torch.unique(ids).numel() != ids.numel():
            raise InvalidRequest(
                "a block id is there twice: each stored block needs one of its own"
            )
        transfers.load(
            self._pager,
            [slots._stored],  # noqa: SLF001 - a pool made it
            [rows.device],
            copy=lambda places, enqueuer: rows.read(places[0], ids, enqueuer),
        )

    def release(self, slots: Slots) -> None:
        """`slots.release()`."""
        slots.release()

    def __repr__(self) -> str:
        return f"<BlockPool {self.block_shape} {self.dtype}, {self.block_nbytes} bytes a block>"

    def _write(
        self, cache: torch.Tensor, rows: Rows, ids: torch.Tensor, places: Sequence[Place]
    ) -> None:
        streams = self._pager.streams
        rows.write(ids, places, streams)
        enqueuing.used_here(streams, [cache])


class Slots:
    """Blocks that are parked. When the last reference goes, they are released too."""

    __slots__ = ("__weakref__", "_count", "_pager", "_pool", "_stored")

    def __init__(self, pool: BlockPool, pager: Pager, stored: Stored, count: int) -> None:
        """Made by `BlockPool.store`."""
        self._pool = pool
        self._stored = stored
        self._pager = pager
        self._count = count

    def release(self) -> None:
        """Give the memory back. May be called twice; loading is over."""
        self._pager.release(self._stored)

    def __len__(self) -> int:
        return self._count

    @property
    def pool(self) -> BlockPool:
        """Which stored them."""
        return self._pool

    @property
    def nbytes(self) -> int:
        """Their size."""
        return self._stored.nbytes

    @property
    def tier(self) -> str:
        """Where the bytes are now: `peer`, `host` or `mixed`; `lost` when they are gone."""
        if self._stored.is_released:
            raise HandleReleased("the slots were released: they are in no tier")
        return self._stored.tier

    @property
    def reason(self) -> str:
        """Why some of it is not in leased memory, or lost: no_daemon, no_room, ...; else empty."""
        return self._stored.reason

    def __repr__(self) -> str:
        state = "released" if self._stored.is_released else self._stored.tier
        return f"<Slots of {self._count} blocks, {self.nbytes} bytes, {state}>"

    def __reduce__(self) -> NoReturn:
        raise InvalidRequest(
            "parked blocks can't be copied or sent to another process: their bytes are this "
            "process's leases; load them into a cache and send that"
        )

    def __del__(self) -> None:
        # Garbage collection may run anywhere, also inside the pager's lock.
        pager = getattr(self, "_pager", None)  # none: an interrupt came before it was set
        if pager is not None and not self._stored.is_released:
            pager.release_later(self._stored)


def _checked(block_ids: BlockIds, count: int) -> torch.Tensor:
    """The ids as a vector on the CPU."""
    try:
        ids = torch.as_tensor(
            block_ids if isinstance(block_ids, torch.Tensor) else np.asarray(block_ids),
            device="cpu",
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidRequest(f"block ids must be integers: {error}") from None
    if ids.numel() == 0:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    if ids.dim() != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
        raise InvalidRequest(
            f"block ids must be one row of integers, not {ids.dtype} of shape {tuple(ids.shape)}"
        )
    ids = ids.to(torch.int64)
    lowest, highest = (int(one) for one in torch.aminmax(ids))
    if lowest < 0 or highest >= count:
        wrong = lowest if lowest < 0 else highest
        raise InvalidRequest(
            f"block id {wrong} is not in the cache, which has blocks 0 to {count - 1}"
        )
    return ids
