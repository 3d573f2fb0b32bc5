"""What it costs to take a request out of the cache and to bring it back."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """The way to where requests are parked, as measured; made anew whenever it changes.

    With *writes_through* full blocks are copied while the request runs, so that only its last,
    partly filled block is left to copy when it is preempted; coming back brings all.
    """

    bytes_per_token: int
    store_bytes_per_second: float
    fetch_bytes_per_second: float
    writes_through: bool = False
    hidden_share: float = 0.0  # of that time in which the engine computes all the same
    parks: bool = True  # False: what is preempted is computed again

    @classmethod
    def by_recomputing(cls, tokens_per_second: float) -> Swap:
        """Nothing is parked: a request that comes back prefills, at that pace."""
        return cls(
            bytes_per_token=1,
            store_bytes_per_second=math.inf,
            fetch_bytes_per_second=tokens_per_second,
            parks=False,
        )

    def dirty_tokens(self, kv_tokens: int, block_tokens: int) -> int:
        """Of so many, those that have to be copied when it is preempted."""
        return kv_tokens % block_tokens if self.writes_through else kv_tokens

    def seconds(self, kv_tokens: int, block_tokens: int) -> float:
        """What a request of so many tokens costs, there and back."""
        there = self.dirty_tokens(kv_tokens, block_tokens) / self.store_bytes_per_second
        back = kv_tokens / self.fetch_bytes_per_second
        return (there + back) * self.bytes_per_token * (1 - self.hidden_share)
