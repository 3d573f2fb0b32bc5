"""Which slabs that were unmapped are told of in one call, and when it is made.

A call takes as long as to unmap a slab, and waits for the interpreter as a copy does: so there are few.
But their keeper has something to do only once it is told, and an owner may want no more than the
first of them. So that goes soon, and the others wait longer each time. Does not cover how they are told
of (`arriving`).
"""

from __future__ import annotations

from aqua_client.slabs import Slab

MOST_TOGETHER = 16
TOGETHER_SECONDS = 0.02
FIRST_PART = 1 / 8  # of that time, then twice as long each time


class Telling:
    """Those of one round, from the first that is unmapped to the last."""

    def __init__(self) -> None:
        self._unmapped: list[Slab] = []
        self._seconds = TOGETHER_SECONDS * FIRST_PART
        self._due_at = 0.0

    def add(self, slab: Slab, *, now: float) -> None:
        """It has been unmapped."""
        if not self._unmapped:
            self._due_at = now + self._seconds
        self._unmapped.append(slab)

    def due(self, *, now: float) -> list[Slab]:
        """Those that are to be told of before another slab is looked at: mostly none."""
        count = len(self._unmapped)
        if not count or (count < MOST_TOGETHER and now < self._due_at):
            return []
        self._seconds = min(2 * self._seconds, TOGETHER_SECONDS)
        return self.rest()

    def rest(self) -> list[Slab]:
        """All that were not told of yet."""
        told, self._unmapped = self._unmapped, []
        return told
