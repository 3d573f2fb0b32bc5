"""What can be set of fair scheduling, each with its reason, checked when it is made."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from aqua_client.errors import InvalidSetting


class Order(enum.Enum):
    """Who goes first when not all fit, once newcomers have had a slice."""

    FAIR = "fair"  # least virtual run time; newcomers begin at the least that anybody has
    LEAST_SERVED = "least_served"  # the same, but newcomers begin at 0: fewest tokens first
    OLDEST = "oldest"  # whoever came first


@dataclass(frozen=True, slots=True, kw_only=True)
class FairSettings:
    """How requests share an engine."""

    block_tokens: int = 16  # tokens a block of the KV cache holds
    order: Order = Order.OLDEST
    ageing_tokens_per_second: float = 16.0  # that a request is ahead by for each second of its age
    newcomer_share: float = 0.5  # of the cache, that newcomers have at most before all others
    prompt_token_cost: float = 0.0  # of a prompt's token, in generated ones
    slice_iterations: int = 8  # at least, once let in
    rush_slice_iterations: int = 4  # of newcomers, while more of them wait than may come in
    longest_slice_iterations: int = 256  # at most, however dear a swap is
    swap_share: float = 0.02  # of the engine's time, that swaps may cost: see `slices`
    patience_seconds: float = 30.0  # that a request may take in the mean, before more are refused

    def __post_init__(self) -> None:
        """Refuse what can't be.

        Raises:
            InvalidSetting: names the key, its value and what is allowed.
        """
        for key in ("block_tokens", "slice_iterations", "rush_slice_iterations"):
            if getattr(self, key) < 1:
                raise InvalidSetting.of(key, getattr(self, key), "1 or more")
        if self.longest_slice_iterations < self.slice_iterations:
            allowed = f"slice_iterations, {self.slice_iterations}, or more"
            key = "longest_slice_iterations"
            raise InvalidSetting.of(key, self.longest_slice_iterations, allowed)
        for key in ("ageing_tokens_per_second", "prompt_token_cost"):
            if not 0 <= getattr(self, key) < math.inf:
                raise InvalidSetting.of(key, getattr(self, key), "0 or more")
        if not self.patience_seconds > 0:
            raise InvalidSetting.of("patience_seconds", self.patience_seconds, "over 0 seconds")
        for key in ("swap_share", "newcomer_share"):
            if not 0 < getattr(self, key) <= 1:
                raise InvalidSetting.of(key, getattr(self, key), "over 0, and at most 1")

    def blocks(self, tokens: int) -> int:
        """How many blocks so many tokens take."""
        return -(-tokens // self.block_tokens)
