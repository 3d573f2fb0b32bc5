"""The cache that `generate()` is given: it streams layers, and parks whole conversations.

    cache = AquaCache(resident_layers=2)
    answer = model.generate(prompt, past_key_values=cache)
    cache.park()

Covers making, parking and resuming. What one layer does is `layer`'s. Layers of a kind that is not
streamed (sliding windows, states of linear attention), which are small, stay resident in between
(`others`).
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial

from transformers import PreTrainedConfig
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
)

from aqua_client import client as own_client
from aqua_client.errors import InvalidSetting
from aqua_client.integrations.kv_cache.layer import AquaLayer
from aqua_client.integrations.kv_cache.others import ParkedSlots, slots
from aqua_client.integrations.kv_cache.residents import Residents
from aqua_client.integrations.kv_cache.segments import Paging, Segments, store_all
from aqua_client.tensors import safety_class

Layer = CacheLayerMixin | LinearAttentionCacheLayerMixin


class AquaCache(DynamicCache):
    """A `DynamicCache` whose layers lie in leased memory but for those that are in use.

    Each new token's keys and values are written once, in segments; a layer comes back while the one
    before it computes. Outputs are those of a `DynamicCache`. Without a daemon it is the same with
    host memory. One thread at a time may use it.

        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
        from aqua_client.integrations.kv_cache import AquaCache

        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=256, hidden_size=32, intermediate_size=64,
            num_hidden_layers=4, num_attention_heads=4,
        ))
        cache = AquaCache(resident_layers=2)
        turn = torch.randint(3, 256, (1, 200))
        turn = model.generate(turn, past_key_values=cache, max_new_tokens=20)
        cache.park()  # the user thinks; the conversation takes no memory here
        print(cache.resident_bytes, cache.stored_bytes)
        turn = torch.cat([turn, torch.randint(3, 256, (1, 10))], dim=1)
        turn = model.generate(turn, past_key_values=cache, max_new_tokens=20)
    """

    def __init__(
        self,
        config: PreTrainedConfig | None = None,
        *,
        resident_layers: int | None = 2,
        tail_tokens: int = 32,
        keep: str = "store",
        client: Paging | None = None,
    ) -> None:
        """Make an empty cache.

        *config*: the model's, to tell its layers of other kinds; without it all are streamed.
        *resident_layers*: how many have all of their tokens on the device at a time, the one that
        is brought back ahead being one of them; None: all, until they are parked.
        *tail_tokens*: each layer's newest, up to twice as many, stay on the device.
        *keep*: "store" or "cache", as in `offload`. *client*: the process's own without it.

        Raises:
            InvalidSetting: less than one layer or token.
            InvalidRequest: *keep* is neither "store" nor "cache".
        """
        if resident_layers is not None and resident_layers < 1:
            raise InvalidSetting.of("resident_layers", resident_layers, "1 and more, or None")
        if tail_tokens < 1:
            raise InvalidSetting.of("tail_tokens", tail_tokens, "1 and more")
        safety_class(keep)
        self._keep = keep
        self._paging: Paging = own_client if client is None else client
        self._residents = Residents(resident_layers)
        self._limit = resident_layers
        self._made_with = (config, tail_tokens)
        make = partial(_new_layer, self._residents, self._paging, keep, tail_tokens)
        self._parked = ParkedSlots(self._paging, (), keep)
        super().__init__(config=config)
        if config is None:
            self.layer_class_to_replicate = make  # type: ignore[assignment]  # it is only called
        self.layers = [make() if type(one) is DynamicLayer else one for one in self.layers]

    def park(self) -> None:
        """Store all that is not stored yet, and let go of it: between turns of a conversation.

        The next `generate` brings it back by itself.

        Raises:
            InsufficientMemory: nowhere is room; all is as it was.
            BrokerUnreachable: there is no leased memory, and `fallback="error"`.
        """
        others = ParkedSlots(self._paging, slots(self._others()), self._keep)
        layers = self._streamed()
        unsaved = [(layer.segments, layer.unsaved()) for layer in layers]
        work = [(segments, one) for segments, one in unsaved if one is not None]
        if work:
            store_all(self._paging, self._keep, work)
        for layer in layers:
            layer.parked()
        if others:
            others.let_go()
            self._parked = others

    def resume(self) -> None:
        """Bring back as many layers as may be resident, ahead of the next turn.

        Raises:
            LeaseLost: what was stored is gone, and the conversation with it.
        """
        self._parked.restore()
        first = self._streamed()[: self._limit]
        for layer in first:
            layer.prefetch()
        for layer in first:
            layer.resume()

    def reset(self) -> None:
        """Forget the conversation, and give its memory back."""
        self._parked.forget()
        for layer in self._others():
            if isinstance(layer, DynamicLayer):  # 5.17 would keep as many tokens, all zero
                layer.keys = layer.values = None
                layer.is_initialized = False
        super().reset()  # type: ignore[no-untyped-call]  # it is not annotated

    def __deepcopy__(self, memo: dict[int, object]) -> AquaCache:
        """A cache of its own with the same tokens, for a prompt that several answers begin with."""
        config, tail_tokens = self._made_with
        other = AquaCache(
            config,
            resident_layers=self._limit,
            tail_tokens=tail_tokens,
            keep=self._keep,
            client=self._paging,
        )
        for number, layer in enumerate(self.layers):
            if not isinstance(layer, AquaLayer):
                other.layers[number] = deepcopy(layer, memo)
            elif layer.get_seq_length() and layer.keys is not None and layer.values is not None:
                other.update(layer.keys, layer.values, number)
        return other

    @property  # type: ignore[override]  # 5.17 knows no other kinds
    def layers(self) -> list[Layer]:
        """One for each of the model's; those that are not streamed come back to be looked at."""
        self._parked.restore()
        return self._layers

    @layers.setter
    def layers(self, layers: list[Layer]) -> None:
        self._layers = layers

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens there are; nothing comes back for it."""
        end = layer_idx + 1 if layer_idx else None  # 0: the first that has a length
        for layer in self._layers[layer_idx:end]:
            if isinstance(layer, CacheLayerMixin):
                return int(layer.get_seq_length())
        return super().get_seq_length(layer_idx)

    @property
    def resident_bytes(self) -> int:
        """Of keys and values that are on the device, or on the way to it."""
        others = sum(slot.tensor.nbytes for slot in slots(self._others()))
        return others + sum(layer.resident_bytes for layer in self._streamed())

    @property
    def stored_bytes(self) -> int:
        """Of keys and values that are in leased memory, or the host's."""
        return self._parked.nbytes + sum(layer.segments.nbytes for layer in self._streamed())

    def _streamed(self) -> list[AquaLayer]:
        return [layer for layer in self._layers if isinstance(layer, AquaLayer)]

    def _others(self) -> list[Layer]:
        return [layer for layer in self._layers if not isinstance(layer, AquaLayer)]


def _new_layer(residents: Residents, paging: Paging, keep: str, tail_tokens: int) -> AquaLayer:
    return AquaLayer(residents, Segments(paging, keep), tail_tokens=tail_tokens)
