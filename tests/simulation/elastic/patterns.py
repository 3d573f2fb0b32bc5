"""How much somebody wants over time: pure functions of virtual seconds, in whole slabs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from aqua_daemon.core.sizes import MIB
from tests.simulation.chance import Chance

STEP_BYTES = 2 * MIB  # everything is a multiple of the smallest slab of an elastic node


class Pattern(Protocol):
    """Bytes wanted at a moment."""

    def bytes_at(self, seconds: float) -> int: ...


@dataclass(frozen=True, slots=True)
class Steady:
    """Always the same."""

    nbytes: int

    def bytes_at(self, seconds: float) -> int:  # noqa: ARG002 - whatever the time
        return _whole(self.nbytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    """High for half of each period, low for the other; a short high half is a burst."""

    low_bytes: int
    high_bytes: int
    period_seconds: float
    high_part: float = 0.5

    def bytes_at(self, seconds: float) -> int:
        is_high = (seconds / self.period_seconds) % 1.0 < self.high_part
        return _whole(self.high_bytes if is_high else self.low_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Breathing:
    """Round *middle_bytes*, by *swing_bytes* from lowest to highest."""

    middle_bytes: int
    swing_bytes: int
    period_seconds: float

    def bytes_at(self, seconds: float) -> int:
        wave = math.sin(2 * math.pi * seconds / self.period_seconds)
        return max(0, int(self.middle_bytes + wave * self.swing_bytes / 2))


def pattern_for(chance: Chance, most_bytes: int) -> Pattern:
    """Some pattern of at most *most_bytes*."""
    high = int(chance.between(0.1, 1.0) * most_bytes)
    low = int(chance.between(0.0, 0.6) * high)
    period = chance.between(1.0, 20.0)
    kind = chance.pick(("steady", "burst", "square", "square", "breathing"))
    if kind == "steady":
        return Steady(high)
    if kind == "breathing":
        return Breathing(middle_bytes=high, swing_bytes=high // 8, period_seconds=period)
    part = 0.5 if kind == "square" else 0.1
    return Square(low_bytes=low, high_bytes=high, period_seconds=period, high_part=part)


def _whole(nbytes: int) -> int:
    return nbytes // STEP_BYTES * STEP_BYTES
