"""Whether a class of data grows so steadily that its next slab is worth borrowing ahead.

Pure: told how much is used and free at each look, with the time. One slab ahead at most, and only
while use has risen at several looks and what is free would be full soon at that pace: a process
that parks one tensor, or parks and releases for ever, borrows nothing ahead, and slow growth does
not keep a slab waiting. What was refused, or went back unused, is not asked for again for a while.
"""

from __future__ import annotations

from collections import deque

# How far back growth is looked at; how many new peaks, over how long, are more than one burst.
WINDOW_SECONDS = 10.0
LEAST_RISES = 3
STEADY_SECONDS = 2.0

# Borrowed ahead is what would be full by then. A slab takes milliseconds, so this is ample.
HORIZON_SECONDS = 2.0

REFUSED_SECONDS = 10.0  # the room is others'; asked for in need, it is asked for anyway
UNUSED_SECONDS = 60.0  # growth has ended: twice as long as an empty slab is kept


class Growth:
    """Of one safety class."""

    def __init__(self) -> None:
        self._peaks: deque[tuple[float, int]] = deque()
        self._free_bytes = 0
        self.looked_at = float("-inf")
        self._not_before = float("-inf")

    def look(self, *, used_bytes: int, free_bytes: int, now: float) -> None:
        """So much is used and free now, in all slabs of the class."""
        self._free_bytes = free_bytes
        self.looked_at = now
        peaks = self._peaks
        while peaks and peaks[0][0] < now - WINDOW_SECONDS:
            peaks.popleft()
        if peaks and used_bytes < peaks[-1][1] // 2:
            peaks.clear()
        if not peaks or used_bytes > peaks[-1][1]:
            peaks.append((now, used_bytes))

    def is_due(self, *, now: float) -> bool:
        """Whether the next slab is to be borrowed now."""
        if len(self._peaks) <= LEAST_RISES or now < self._not_before:
            return False
        (began_at, began_bytes), (_, peak_bytes) = self._peaks[0], self._peaks[-1]
        seconds = now - began_at
        if seconds < STEADY_SECONDS:
            return False
        return self._free_bytes <= (peak_bytes - began_bytes) / seconds * HORIZON_SECONDS

    def refused(self, *, now: float) -> None:
        """It was not to be had."""
        self._not_before = now + REFUSED_SECONDS

    def unused(self, *, now: float) -> None:
        """One that was borrowed ahead goes back, and nothing was ever put there."""
        self._not_before = now + UNUSED_SECONDS
