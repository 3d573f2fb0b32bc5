"""How much the demo serves: the sizes of a run, and whose turn it is when. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

MIB = 2**20
HOME_GPU = "SHM-0"  # of the model server; it borrows from the others
BURST_GPU = "SHM-1"  # its owner has little to do, then a burst, then little again


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What the model is built from; its weights follow from the seed."""

    layers: int
    hidden: int
    heads: int
    seed: int = 7

    @property
    def kv_bytes_per_token(self) -> int:
        """A key and a value of float32 in every layer."""
        return 2 * self.layers * self.hidden * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rush:
    """Requests that come all at once to an engine whose KV cache holds a few of them."""

    prompt_bytes: int
    reply_tokens: tuple[int, ...]  # of each request
    kv_blocks: int
    block_tokens: int = 16
    slice_tokens: int = 6  # of those who take turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run, whole."""

    shape: ModelShape
    conversations: int
    turns: int
    prompt_bytes: int  # what a conversation reads at its first turn
    piece_bytes: int  # what it reads at each later turn
    reply_tokens: int  # what it answers at each turn
    kv_budget_bytes: int
    owner_bytes: int  # what BURST_GPU's owner uses itself while it has little to do
    neighbour_bytes: int  # what one process uses of each of the GPUs after that
    rush: Rush
    threads: int = 1  # of torch, in both runs alike: sums depend on it
    order_seed: int = 11

    @property
    def total_turns(self) -> int:
        """Turns of all conversations together."""
        return self.conversations * self.turns

    def tokens_after(self, turn: int) -> int:
        """The tokens that a conversation's KV cache holds when its turn, from 0, has ended."""
        read = self.prompt_bytes + turn * self.piece_bytes
        return read + (turn + 1) * self.reply_tokens

    @property
    def final_kv_bytes(self) -> int:
        """The KV of all conversations at the end."""
        tokens = self.tokens_after(self.turns - 1)
        return self.conversations * tokens * self.shape.kv_bytes_per_token

    def order(self) -> list[int]:
        """Which conversation has its turn when: each round in an order of its own."""
        shuffler = random.Random(self.order_seed)  # noqa: S311 - an order that repeats, no secret
        rounds: list[int] = []
        for _ in range(self.turns):
            numbers = list(range(self.conversations))
            shuffler.shuffle(numbers)
            rounds += numbers
        return rounds


# The other GPUs have room for a part of what waits, so that some goes to host memory in the burst.
FULL = Plan(
    shape=ModelShape(layers=6, hidden=256, heads=4),
    conversations=20,
    turns=5,
    prompt_bytes=600,
    piece_bytes=120,
    reply_tokens=24,
    kv_budget_bytes=50 * MIB,
    owner_bytes=96 * MIB,
    neighbour_bytes=200 * MIB,
    rush=Rush(prompt_bytes=48, reply_tokens=(96, 96, 64, 64, 64, 48, 48, 32), kv_blocks=20),
)

# The same in less time, for tests: enough KV that leases lie on several GPUs.
QUICK = Plan(
    shape=ModelShape(layers=6, hidden=256, heads=4),
    conversations=12,
    turns=3,
    prompt_bytes=500,
    piece_bytes=60,
    reply_tokens=8,
    kv_budget_bytes=24 * MIB,
    owner_bytes=144 * MIB,
    neighbour_bytes=212 * MIB,
    rush=Rush(prompt_bytes=24, reply_tokens=(24, 24, 24, 16, 16, 16), kv_blocks=8),
)


def mib(nbytes: int) -> str:
    """Bytes in MiB, to a tenth, for people."""
    return f"{nbytes / MIB:.1f} MiB"
