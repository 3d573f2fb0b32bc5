"""The model: Llama's architecture from `transformers`, float32, with random weights from a seed.

A token is a byte. One conversation is decoded at a time, so that what a conversation answers
depends on nothing but its own past. The KV cache is `DynamicCache`; of it only `update` and the
`keys` and `values` of its layers are used.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicLayer

from aqua_client.demo.plan import ModelShape

BYTE_VALUES = 256

# Wide enough that answers depend on all that was read: with the usual 0.02 such a small model
# repeats one token for ever, and equal answers would prove nothing.
WEIGHT_SPREAD = 0.1


class Model:
    """Reads tokens into a cache and says which one it would write next."""

    def __init__(self, shape: ModelShape, *, threads: int) -> None:
        logging.getLogger("transformers").setLevel(logging.ERROR)
        torch.set_num_threads(threads)
        torch.manual_seed(shape.seed)
        self._llama: LlamaForCausalLM = LlamaForCausalLM(_config(shape)).train(mode=False)

    @property
    def llama(self) -> LlamaForCausalLM:
        """Itself, for an engine that wants a copy."""
        return self._llama

    def read(self, cache: KvCache, tokens: Sequence[int]) -> int:
        """Add tokens to what the cache holds; the likeliest next token."""
        with torch.inference_mode():
            answer = self._llama(
                torch.tensor([list(tokens)]),
                past_key_values=cache.dynamic,
                use_cache=True,
                logits_to_keep=1,
            )
            return int(answer.logits[0, -1].argmax())


class KvCache:
    """One conversation's keys and values: two tensors a layer."""

    def __init__(self) -> None:
        self.dynamic = DynamicCache()

    def add_layer(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put back the next layer, as `take_layer` gave it."""
        self.dynamic.update(keys, values, len(self.dynamic.layers))

    def take_layer(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Take out the first layer's keys and values; None when nothing is left.

        One by one, so that what has been parked needs no room beside what has not.
        """
        if not self.dynamic.layers:
            return None
        return _pair(self.dynamic.layers.pop(0))

    def tensors(self) -> list[torch.Tensor]:
        """Keys and values in turn, layer by layer."""
        return [tensor for layer in self.dynamic.layers for tensor in _pair(layer)]

    @property
    def tokens(self) -> int:
        """How many tokens it holds."""
        return int(self.dynamic.get_seq_length())

    @property
    def nbytes(self) -> int:
        """What its tensors hold now."""
        return sum(tensor.nbytes for tensor in self.tensors())

    @property
    def growth_bytes(self) -> int:
        """What it needs for a moment beside them: a layer grows by a copy of one tensor."""
        return max((tensor.nbytes for tensor in self.tensors()), default=0)


def _pair(layer: object) -> tuple[torch.Tensor, torch.Tensor]:
    if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
        raise TypeError(f"a layer of a plain Llama holds keys and values, not {layer!r}")
    return layer.keys, layer.values


def _config(shape: ModelShape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=BYTE_VALUES,
        hidden_size=shape.hidden,
        intermediate_size=2 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=16384,
        initializer_range=WEIGHT_SPREAD,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
