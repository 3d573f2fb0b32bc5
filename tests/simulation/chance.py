"""Everything that is random in a run, from its seed alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """The dice of one run. When it is calm, no fault strikes and no message is slow."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - a run must be repeatable from its seed
        self.is_calm = False
        self._ids = 0

    def strikes(self, probability: float) -> bool:
        """Whether a fault of this *probability* happens now."""
        return not self.is_calm and self.rng.random() < probability

    def happens(self, probability: float) -> bool:
        """Whether something ordinary of this *probability* happens now."""
        return self.rng.random() < probability

    def latency(self, *, pauses: float = 0.06) -> float:
        """Seconds on the way: a few milliseconds, with a chance of *pauses* of much more."""
        draw = self.rng.random()
        if draw >= pauses or self.is_calm:
            return 0.0002 + 0.004 * draw
        return 0.4 * self.rng.random()

    def between(self, low: float, high: float) -> float:
        """Some float between the two."""
        return low + (high - low) * self.rng.random()

    def pick(self, choices: Sequence[T]) -> T:
        """One of *choices*."""
        return choices[int(self.rng.random() * len(choices))]

    def new_id(self) -> str:
        """An id that was never used before, readable in a story by its last digits."""
        self._ids += 1
        return f"{self._ids:032x}"
