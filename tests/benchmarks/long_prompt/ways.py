"""The caches that a long prompt is read with: ours, and what a user would take instead.

transformers' own offloaded cache works on CUDA alone. Where there is none its place is taken by what
it does there: after each layer's update all of that layer is copied to private host memory, and the
next layer is copied back meanwhile, in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from aqua_client.client import Client
from aqua_client.integrations.kv_cache import AquaCache

LEASES = "leases"
RESIDENT = "no offload"
OFFLOADED = "transformers' offloaded cache"
WHOLE_LAYERS = "whole layers copied to host memory"

Pair = tuple[torch.Tensor, torch.Tensor]


class WholeLayers(DynamicCache):
    """A layer is away as a copy, and comes back as another."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = ThreadPoolExecutor(1)
        self._coming: dict[int, Future[Pair]] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, **_: object
    ) -> Pair:
        """Bring this layer back, begin to bring back the next, and copy this one out."""
        if layer_idx in self._coming:
            self._put(layer_idx, self._coming.pop(layer_idx).result())
        following = (layer_idx + 1) % max(1, len(self.layers))
        if following < layer_idx or len(self.layers) > layer_idx + 1:
            self._coming[following] = self._thread.submit(_copies, *self._pair(following))
        keys, values = super().update(key_states, value_states, layer_idx)
        self._put(layer_idx, _copies(keys, values))
        return keys, values

    def _pair(self, number: int) -> Pair:
        layer = self.layers[number]
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        return layer.keys, layer.values

    def _put(self, number: int, pair: Pair) -> None:
        layer = self.layers[number]
        assert isinstance(layer, DynamicLayer)
        layer.keys, layer.values = pair


def _copies(keys: torch.Tensor, values: torch.Tensor) -> Pair:
    return keys.clone(), values.clone()


def ways(client: Client, device: torch.device) -> Mapping[str, Callable[[], DynamicCache]]:
    """By name, ours first."""
    found: dict[str, Callable[[], DynamicCache]] = {
        LEASES: lambda: AquaCache(client=client),
        RESIDENT: DynamicCache,
    }
    if device.type == "cuda":
        return {**found, OFFLOADED: lambda: DynamicCache(offloading=True)}
    return {**found, WHOLE_LAYERS: WholeLayers}
