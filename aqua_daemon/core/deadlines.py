"""Times at which something must be looked at, kept in order.

An entry is a hint: whoever takes it looks at the books and may find that there is nothing to do
(yet). So nothing is ever removed early, and moving a deadline is pushing another entry.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

Key = TypeVar("Key")


class Deadlines(Generic[Key]):
    """A queue of keys by time."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Key]] = []
        self._pushed = 0  # keeps keys of one time in the order they were pushed

    def push(self, at: float, key: Key) -> None:
        """Ask to see *key* at *at*."""
        self._pushed += 1
        heapq.heappush(self._heap, (at, self._pushed, key))

    def take_due(self, now: float) -> list[tuple[float, Key]]:
        """Remove and return what is due, oldest first, each with the time it was asked for."""
        due: list[tuple[float, Key]] = []
        while self._heap and self._heap[0][0] <= now:
            at, _, key = heapq.heappop(self._heap)
            due.append((at, key))
        return due

    @property
    def next_at(self) -> float | None:
        """When the next entry is due; there may be nothing to do then."""
        return self._heap[0][0] if self._heap else None
