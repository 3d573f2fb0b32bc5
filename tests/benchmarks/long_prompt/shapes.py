"""Models of random weights: one for a CUDA GPU, and a toy where shm GPUs stand in for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from transformers import LlamaConfig, LlamaForCausalLM

# A model that repeats one token would hide a cache that forgets.
WEIGHT_SPREAD = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model, and what is asked of it."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    dtype: torch.dtype
    prompts: tuple[int, ...]  # in tokens
    new_tokens: int
    rounds: int  # the best of these counts

    @property
    def token_bytes(self) -> int:
        """Of keys and values of one token, in all layers."""
        head_dim = self.hidden // self.heads
        return 2 * self.layers * self.kv_heads * head_dim * self.dtype.itemsize


TOY = Shape(
    name="toy",
    layers=8,
    hidden=256,
    intermediate=512,
    heads=4,
    kv_heads=4,
    dtype=torch.float32,
    prompts=(512, 2048),
    new_tokens=16,
    rounds=5,
)
REAL = Shape(  # Llama 3.1 8B's
    name="8B",
    layers=32,
    hidden=4096,
    intermediate=14336,
    heads=32,
    kv_heads=8,
    dtype=torch.bfloat16,
    prompts=(8192, 32768, 131072),
    new_tokens=64,
    rounds=2,
)


class Model(Protocol):
    """What is used of one."""

    def generate(self, tokens: torch.Tensor, /, **how: object) -> torch.Tensor: ...


def model(shape: Shape, device: torch.device) -> Model:
    """Its weights are the same each time."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2 * max(shape.prompts),
        initializer_range=WEIGHT_SPREAD,
        dtype=shape.dtype,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with device:  # made where they are used: a copy of them would take as long as the benchmark
        made = torch.nn.Module.to(LlamaForCausalLM(config), shape.dtype)
    return cast("Model", made.train(mode=False))
