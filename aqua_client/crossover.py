"""Which way of copying many blocks is the quickest: by what was measured, near what is asked.

Pure: seconds in, a choice out. Each measurement is of so many blocks of one size, by several ways, on
one device; a choice is by the nearest of them. Where nothing is measured it is a way that needs no
proof on the device first: torch's, or a call for each. `stats()` tells the table. Does not cover
measuring (`calibrating`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Way(StrEnum):
    """How many blocks are copied."""

    EACH = "each"  # a call of the driver's for every block
    BATCH = "batch"  # one call for all, the driver's own batch
    KERNEL = "kernel"  # one kernel that moves all of them
    TORCH = "torch"  # torch's gather and scatter by index


# As few are enqueued one by one before anything else could be made ready.
FEW = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What so many blocks of that size took, by each way that gave the right bytes."""

    block_bytes: int
    count: int
    seconds: Mapping[Way, float]


class Crossover:
    """One device's table."""

    def __init__(self) -> None:
        """Nothing is measured."""
        self.measured: tuple[Measured, ...] = ()

    def choose(self, block_bytes: int, count: int, *, may_torch: bool) -> Way:
        """The quickest for so many blocks of that size; TORCH only where it may do it."""
        if count < FEW:
            return Way.EACH
        refused = set() if may_torch else {Way.TORCH}
        known = [one for one in self.measured if one.seconds.keys() - refused]
        if not known:
            return Way.TORCH if may_torch else Way.EACH
        nearest = min(known, key=lambda one: _distance(one, block_bytes, count))
        return min(nearest.seconds.keys() - refused, key=nearest.seconds.__getitem__)

    def told(self) -> dict[str, dict[str, float]]:
        """For people: microseconds by way, by count and size."""
        return {
            f"{one.count} x {one.block_bytes}": {
                way.value: round(seconds * 1e6, 1) for way, seconds in one.seconds.items()
            }
            for one in self.measured
        }


def _distance(one: Measured, block_bytes: int, count: int) -> float:
    size = abs(math.log2(one.block_bytes / max(1, block_bytes)))
    return size + abs(math.log2(one.count / count))
