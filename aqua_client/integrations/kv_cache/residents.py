"""Which layers of a cache may have all of their tokens resident: at most so many at a time.

A model goes through its layers in turn, again and again, so the one to let go is that which is
needed last from here on: the one before the layer that is in use. With room for more than two, the
first layers stay for good and the others pass through what is left.
"""

from __future__ import annotations

from typing import Protocol
from weakref import WeakValueDictionary


class Resident(Protocol):
    """A layer."""

    def offload(self) -> None:
        """Store what is not stored yet, and let go of the rest."""

    def prefetch(self) -> None:
        """Begin to bring back what is away."""


class Residents:
    """Of one cache; knows its layers, but does not keep them."""

    def __init__(self, limit: int | None) -> None:
        """*limit*: how many layers; None: all."""
        self._limit = limit
        self._layers: WeakValueDictionary[int, Resident] = WeakValueDictionary()
        self._count = 0
        self._here: set[int] = set()
        self._position = 0
        self._has_wrapped = False  # before that nobody knows which layer is the last

    def add(self, layer: Resident) -> int:
        """One more layer; its number."""
        self._layers[self._count] = layer
        self._count += 1
        return self._count - 1

    def use(self, number: int) -> None:
        """This layer is needed now: make room for it."""
        self._has_wrapped |= number < self._position
        self._position = number
        self.enter(number)

    def enter(self, number: int) -> None:
        """This layer becomes resident, and others leave where they would be too many."""
        self._here.add(number)
        while self._limit is not None and len(self._here) > self._limit:
            farthest = max(self._here - {number}, key=self._distance)
            layer = self._layers.get(farthest)
            if layer is not None:
                layer.offload()
            self._here.discard(farthest)

    def leave(self, number: int) -> None:
        """This layer is not resident any more."""
        self._here.discard(number)

    def prefetch_next(self) -> None:
        """Begin to bring back the layer after the one that is in use."""
        may_be_two = self._limit is None or self._limit > 1
        if may_be_two and self._has_wrapped:
            layer = self._layers.get((self._position + 1) % self._count)
            if layer is not None:
                layer.prefetch()

    def _distance(self, number: int) -> int:
        return (number - self._position) % self._count
