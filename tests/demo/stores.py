"""A store that keeps copies, and the ways in which a store can fail its promises."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from aqua_client.demo.plan import ModelShape, Plan, Rush

TINY = Plan(
    shape=ModelShape(layers=2, hidden=32, heads=2),
    conversations=5,
    turns=3,
    prompt_bytes=24,
    piece_bytes=5,
    reply_tokens=3,
    kv_budget_bytes=2 * 50 * 2 * 2 * 32 * 4,  # two conversations of fifty tokens
    owner_bytes=2**20,
    neighbour_bytes=2**20,
    rush=Rush(prompt_bytes=8, reply_tokens=(6, 4), kv_blocks=3, block_tokens=4),
)


class Copy:
    """A copy in the store."""

    def __init__(self, tensor: torch.Tensor, *, tier: str) -> None:
        self._tensor: torch.Tensor | None = tensor
        self.tier = tier

    def fetch(self) -> torch.Tensor:
        assert self._tensor is not None, "fetched after it was released"
        return self._tensor.clone()

    def release(self) -> None:
        self._tensor = None


class CopyStore:
    """Keeps its promises: what comes back is what went."""

    def __init__(self, *, tier: str = "peer", revokes: int = 1) -> None:
        self.tier = tier
        self.revokes = revokes
        self.copies: list[Copy] = []

    def offload(self, tensor: torch.Tensor) -> Copy:
        copy = Copy(self.stored(tensor.clone()), tier=self.tier)
        self.copies.append(copy)
        return copy

    def stored(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def stats(self) -> Mapping[str, object]:
        fallbacks = {} if self.tier == "peer" else {"no_daemon": len(self.copies)}
        return {
            "revokes_served": self.revokes,
            "evacuated_bytes": self.revokes * 4096,
            "fallbacks": fallbacks,
        }


class FlippingStore(CopyStore):
    """Flips one bit of the last byte of the first tensor that it gets."""

    def stored(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self.copies:
            tensor.view(torch.uint8).view(-1)[-1] ^= 0x40
        return tensor


class ForgettingStore(CopyStore):
    """Gives zeros back."""

    def stored(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(tensor)
