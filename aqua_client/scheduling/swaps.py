"""What it costs to take a request out of the cache and to bring it back."""

from __future__ import annotations

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

    def seconds(self, kv_tokens: int, block_tokens: int) -> float:
        """What a request of so many tokens costs, there and back."""
        dirty_tokens = kv_tokens % block_tokens if self.writes_through else kv_tokens
        there = dirty_tokens * self.bytes_per_token / self.store_bytes_per_second
        back = kv_tokens * self.bytes_per_token / self.fetch_bytes_per_second
        return (there + back) * (1 - self.hidden_share)
