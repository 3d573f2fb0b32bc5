"""How soon there is room again, by how often requests have ended of late."""

from __future__ import annotations

from collections import deque

SEEN_SECONDS = 30.0
FIRST_GUESS_SECONDS = 2.0  # where none has ended yet
LONGEST_SECONDS = 60.0


class Pace:
    """Counts ends."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque()

    def ended(self, now: float) -> None:
        """A request has ended."""
        self._ends.append(now)
        self._forget(now)

    def seconds_for(self, requests: int, *, now: float) -> float:
        """Until so many have ended, at the pace of the last half minute."""
        self._forget(now)
        if not self._ends:
            return FIRST_GUESS_SECONDS
        each = max(now - self._ends[0], 0.001) / len(self._ends)
        return min(LONGEST_SECONDS, requests * each)

    def _forget(self, now: float) -> None:
        while self._ends and self._ends[0] < now - SEEN_SECONDS:
            self._ends.popleft()
