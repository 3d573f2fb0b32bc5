"""Tiny models with random weights from a seed, and what is asked of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Protocol, cast

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedConfig

VOCABULARY = 256
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 16
LAYERS = 4
# Bytes of keys and values of one token in one layer, in float32.
TOKEN_BYTES = 2 * KV_HEADS * HEAD_DIM * 4

# With the usual spread a small model repeats one token; with this head its two best are far apart.
WEIGHT_SPREAD = 0.1
HEAD_SCALE = 8.0

GREEDY: Mapping[str, object] = {"do_sample": False}

# It advises on arguments that it has set itself.
logging.getLogger("transformers").setLevel(logging.ERROR)


class Answer(Protocol):
    """Of `generate`."""

    sequences: torch.Tensor
    logits: tuple[torch.Tensor, ...]  # by new token


class Outputs(Protocol):
    """Of one pass."""

    logits: torch.Tensor


class Llama(Protocol):
    """What is used of a model."""

    config: PreTrainedConfig

    def generate(self, tokens: torch.Tensor, /, **how: object) -> Answer: ...

    def __call__(self, tokens: torch.Tensor, /, **how: object) -> Outputs: ...


@cache
def model(layers: int = LAYERS, attention: str = "sdpa", device: str = "cpu") -> Llama:
    """A model; the smaller one is a draft for the other."""
    torch.manual_seed(layers)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HEADS * HEAD_DIM,
        intermediate_size=2 * HEADS * HEAD_DIM,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        initializer_range=WEIGHT_SPREAD,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    config._attn_implementation = attention
    with torch.inference_mode(mode=False), torch.no_grad():
        made = LlamaForCausalLM(config).train(mode=False)
        made.lm_head.weight.mul_(HEAD_SCALE)
        torch.nn.Module.to(made, device)
    return cast("Llama", made)


def prompt(tokens: int, *, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (batch, tokens), generator=generator)


def generate(
    kv_cache: DynamicCache,
    tokens: torch.Tensor,
    how: Mapping[str, object] = GREEDY,
    *,
    new: int = 16,
    attention: str = "sdpa",
    device: str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """All tokens after *new* more, and the logits of each of these."""
    llama = model(attention=attention, device=device)  # which has a seed of its own when it is made
    torch.manual_seed(7)
    answer = llama.generate(
        tokens,
        past_key_values=kv_cache,
        max_new_tokens=new,
        return_dict_in_generate=True,
        output_logits=True,
        **how,
    )
    return answer.sequences, torch.stack(answer.logits)


def read(kv_cache: DynamicCache, tokens: torch.Tensor) -> torch.Tensor:
    """One pass over *tokens*; the logits after the last."""
    with torch.inference_mode():
        return model()(tokens, past_key_values=kv_cache, logits_to_keep=1).logits


def are_alike(one: DynamicCache, other: DynamicCache) -> bool:
    """Whether all keys and values are the same, to the bit."""
    return len(one) == len(other) and all(
        torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])
        for mine, theirs in zip(one, other, strict=True)
    )
