"""Layers that are not streamed, while their conversation is parked.

Sliding windows, states of linear attention and the like: whatever tensors of some size such a layer
has are stored whole, and come back as soon as anybody looks at the layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aqua_client.integrations.kv_cache.segments import Paging, fetch
from aqua_client.tensors import OffloadedTensor

LEAST_BYTES = 1024  # what is smaller is a number or two, which the layer may need meanwhile


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a layer has a tensor."""

    holder: dict[Any, Any]
    name: str | int

    @property
    def tensor(self) -> torch.Tensor:
        """What is there."""
        found = self.holder[self.name]
        assert isinstance(found, torch.Tensor)  # noqa: S101 - `slots` finds these alone
        return found

    def put(self, tensor: torch.Tensor) -> None:
        """Have this there instead."""
        self.holder[self.name] = tensor


def slots(layers: Iterable[object]) -> list[Slot]:
    """All tensors of some size that *layers* have on a device."""
    return [slot for layer in layers for slot in _slots(vars(layer))]


def _slots(holder: dict[Any, Any]) -> Iterator[Slot]:
    for name, value in holder.items():
        if isinstance(value, torch.Tensor):
            if value.nbytes >= LEAST_BYTES and not value.is_meta:
                yield Slot(holder, name)
        elif isinstance(value, dict):  # by number
            yield from _slots(value)


class ParkedSlots:
    """What is stored of them."""

    def __init__(self, paging: Paging, found: Sequence[Slot], keep: str) -> None:
        """Store them; they stay where they are until `let_go`. Raises as `offload_many`."""
        self._paging = paging
        self._slots = found
        self._handles: list[OffloadedTensor] = []
        if found:
            self._handles = paging.offload_many([slot.tensor for slot in found], keep=keep)

    def __bool__(self) -> bool:
        return bool(self._slots)

    @property
    def nbytes(self) -> int:
        """Of what is stored."""
        return sum(handle.nbytes for handle in self._handles)

    def let_go(self) -> None:
        """Leave their shapes there alone."""
        for slot in self._slots:
            slot.put(torch.empty_like(slot.tensor, device="meta"))

    def restore(self) -> None:
        """Put them back, if that was not done. LeaseLost: some are gone, and none was put back."""
        if not self._slots:
            return
        outs = [_like(handle) for handle in self._handles]
        fetch(self._paging, self._handles, outs)
        self._end(outs)

    def forget(self) -> None:
        """Put nothing back, as in a layer that was reset."""
        self._end([_like(handle).zero_() for handle in self._handles])

    def _end(self, tensors: Sequence[torch.Tensor]) -> None:
        for slot, handle, tensor in zip(self._slots, self._handles, tensors, strict=True):
            slot.put(tensor)
            handle.release()
        self._slots, self._handles = (), []


def _like(handle: OffloadedTensor) -> torch.Tensor:
    with torch.inference_mode(mode=False):
        return torch.empty(handle.shape, dtype=handle.dtype, device=handle.device)
