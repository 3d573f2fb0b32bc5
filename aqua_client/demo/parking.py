"""Parks KV caches in a store and gets them back, and checks every byte on the way.

Whose turn it is and what must be parked is `serving`'s. The store is `aqua_client`'s client; what
is used of it is said here as protocols.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from aqua_client.demo.model import KvCache


class Handle(Protocol):
    """A tensor in the store."""

    @property
    def tier(self) -> str:
        """Where its bytes are now: `peer`, `host` or `mixed`."""

    def fetch(self) -> torch.Tensor:
        """A tensor of the same bytes."""

    def release(self) -> None:
        """Give its place back."""


class Store(Protocol):
    """Takes tensors."""

    def offload(self, tensor: torch.Tensor, /) -> Handle:
        """Copy a tensor; the source may go."""

    def stats(self) -> Mapping[str, object]:
        """What it has done, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedTensor:
    """A tensor's place, and what its bytes were."""

    handle: Handle
    nbytes: int
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedCache:
    """A conversation's KV out of the budget: keys and values in turn."""

    tensors: tuple[ParkedTensor, ...]

    @property
    def nbytes(self) -> int:
        """What it needs when it comes back."""
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(slots=True)
class Parking:
    """The store, and the counts of what went there and came back."""

    store: Store
    parks: int = 0
    fetches: int = 0
    parked_bytes: Counter[str] = field(default_factory=Counter)  # by the tier they went to
    fetched_bytes: Counter[str] = field(default_factory=Counter)  # by the tier they came from
    tensors_compared: int = 0
    tensors_differing: int = 0

    def park(self, cache: KvCache) -> tuple[ParkedCache, dict[str, int]]:
        """Empty a cache into the store; its place, and the bytes by tier."""
        places: list[ParkedTensor] = []
        tiers: Counter[str] = Counter()
        while layer := cache.take_layer():
            for tensor in layer:
                handle = self.store.offload(tensor)
                places.append(
                    ParkedTensor(handle=handle, nbytes=tensor.nbytes, digest=digest(tensor))
                )
                tiers[handle.tier] += tensor.nbytes
        self.parks += 1
        self.parked_bytes += tiers
        return ParkedCache(tensors=tuple(places)), dict(tiers)

    def fetch(self, parked: ParkedCache) -> tuple[KvCache, dict[str, int]]:
        """A cache of what was parked, compared with what went; its place is given back."""
        cache = KvCache()
        tiers: Counter[str] = Counter()
        for keys, values in zip(parked.tensors[::2], parked.tensors[1::2], strict=True):
            for place in (keys, values):
                tiers[place.handle.tier] += place.nbytes
            cache.add_layer(self._back(keys), self._back(values))
        self.fetches += 1
        self.fetched_bytes += tiers
        return cache, dict(tiers)

    def _back(self, place: ParkedTensor) -> torch.Tensor:
        tensor = place.handle.fetch()
        place.handle.release()
        self.tensors_compared += 1
        if digest(tensor) != place.digest:
            self.tensors_differing += 1
        return tensor


def digest(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes, its shape and its type, in 16 bytes."""
    shape = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    hasher = hashlib.blake2b(shape, digest_size=16)
    hasher.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.digest()
