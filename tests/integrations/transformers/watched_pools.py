"""Block pools that look at what goes through them, or spoil it."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence

import torch

import aqua_client
from aqua_client.pools import BlockPool, Slots

LAG_SECONDS = 0.05


class ComparingPools:
    """Makes a client's pools, and compares every block that is loaded with what was stored."""

    def __init__(self, client: aqua_client.Client) -> None:
        self._client = client
        self.compared_bytes = 0
        self.read_bytes: Counter[str] = Counter()  # by the name of the thread that read

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
        assert _same_bytes(cache[torch.as_tensor(block_ids)], self._stored[slots])
        self._pools.compared_bytes += slots.nbytes
        self._pools.read_bytes[threading.current_thread().name] += slots.nbytes


def _same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """As numbers, what nobody has written yet may be one that does not equal itself."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


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


class LosingPools:
    """Makes a client's pools; the first so many loads find nothing."""

    def __init__(self, client: aqua_client.Client, losses: int) -> None:
        self._client = client
        self.losses_left = losses

    def pool(self, block_shape: Sequence[int], dtype: torch.dtype) -> BlockPool:
        return _Losing(self, self._client.pool(block_shape, dtype))


class _Losing(BlockPool):
    def __init__(self, pools: LosingPools, real: BlockPool) -> None:
        self.__dict__.update(real.__dict__)
        self._pools = pools

    def load(
        self, slots: Slots, cache: torch.Tensor, block_ids: Sequence[int] | torch.Tensor
    ) -> None:
        if self._pools.losses_left:
            self._pools.losses_left -= 1
            raise aqua_client.LeaseLost("the test has lost it")
        super().load(slots, cache, block_ids)


class LaggingPools:
    """Makes a client's pools; what is written ahead is written a step later, as on a busy machine.

    What comes back has to have been somebody's still, by *in_use*, when it was written: else it might
    be another's bytes.
    """

    def __init__(self, client: aqua_client.Client, in_use: Callable[[], set[int]]) -> None:
        self._client = client
        self.in_use = in_use
        self.strays: weakref.WeakSet[Slots] = weakref.WeakSet()  # some of them was nobody's then
        self.loaded_strays = 0
        self._step = 0
        self._changed = threading.Condition()

    def pool(self, block_shape: Sequence[int], dtype: torch.dtype) -> BlockPool:
        return _Lagging(self, self._client.pool(block_shape, dtype))

    def stepped(self) -> None:
        """The engine begins another step."""
        with self._changed:
            self._step += 1
            self._changed.notify_all()

    def await_step(self) -> None:
        """Or for a moment: somebody may wait for what is to be written."""
        with self._changed:
            step = self._step
            self._changed.wait_for(lambda: self._step > step, LAG_SECONDS)


class _Lagging(BlockPool):
    def __init__(self, pools: LaggingPools, real: BlockPool) -> None:
        self.__dict__.update(real.__dict__)
        self._pools = pools

    def store(self, cache: torch.Tensor, block_ids: Sequence[int] | torch.Tensor) -> Slots:
        if "write-through" not in threading.current_thread().name:
            return super().store(cache, block_ids)
        self._pools.await_step()
        is_somebodys = {int(one) for one in block_ids} <= self._pools.in_use()
        slots = super().store(cache, block_ids)
        if not is_somebodys:
            self._pools.strays.add(slots)
        return slots

    def load(
        self, slots: Slots, cache: torch.Tensor, block_ids: Sequence[int] | torch.Tensor
    ) -> None:
        self._pools.loaded_strays += slots in self._pools.strays
        super().load(slots, cache, block_ids)
