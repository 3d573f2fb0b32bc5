"""Block pools that look at what goes through them, or spoil it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch

import aqua_client
from aqua_client.pools import BlockPool, Slots


class ComparingPools:
    """Makes a client's pools, and compares every block that is loaded with what was stored."""

    def __init__(self, client: aqua_client.Client) -> None:
        self._client = client
        self.compared_bytes = 0

    def pool(self, block_shape: Sequence[int], dtype: torch.dtype) -> BlockPool:
        return _Comparing(self, self._client.pool(block_shape, dtype))


class _Comparing(BlockPool):
    def __init__(self, pools: ComparingPools, real: BlockPool) -> None:
        self.__dict__.update(real.__dict__)
        self._pools = pools
        self._stored: weakref.WeakKeyDictionary[Slots, torch.Tensor] = weakref.WeakKeyDictionary()

    def store(self, cache: torch.Tensor, block_ids: Sequence[int] | torch.Tensor) -> Slots:
        slots = super().store(cache, block_ids)
        self._stored[slots] = cache[torch.as_tensor(block_ids)].clone()
        return slots

    def load(
        self, slots: Slots, cache: torch.Tensor, block_ids: Sequence[int] | torch.Tensor
    ) -> None:
        super().load(slots, cache, block_ids)
        assert torch.equal(cache[torch.as_tensor(block_ids)], self._stored[slots])
        self._pools.compared_bytes += slots.nbytes


class SpoilingPools:
    """Makes a client's pools; what is loaded from them is not what was stored."""

    def __init__(self, client: aqua_client.Client) -> None:
        self._client = client

    def pool(self, block_shape: Sequence[int], dtype: torch.dtype) -> BlockPool:
        return _Spoiling(self._client.pool(block_shape, dtype))


class _Spoiling(BlockPool):
    def __init__(self, real: BlockPool) -> None:
        self.__dict__.update(real.__dict__)

    def load(
        self, slots: Slots, cache: torch.Tensor, block_ids: Sequence[int] | torch.Tensor
    ) -> None:
        super().load(slots, cache, block_ids)
        cache[torch.as_tensor(block_ids)] = 0
