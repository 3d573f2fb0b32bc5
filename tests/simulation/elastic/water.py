"""The oracle's own weighted max-min shares: the level of the water, found by halving."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_HALVINGS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Vessel:
    """One that drinks: at least what it can't give back, at most what it wants."""

    stuck_bytes: int
    wanted_bytes: int  # with what is stuck
    weight: float


def shares(capacity_bytes: float, vessels: Mapping[_Key, Vessel]) -> dict[_Key, float]:
    """What each gets when as much as there is has been poured."""
    low, high = 0.0, max((_enough(one) for one in vessels.values()), default=0.0)
    if sum(_at(high, one) for one in vessels.values()) <= capacity_bytes:
        return {key: _at(high, one) for key, one in vessels.items()}
    for _ in range(_HALVINGS):
        level = (low + high) / 2
        if sum(_at(level, one) for one in vessels.values()) > capacity_bytes:
            high = level
        else:
            low = level
    return {key: _at(low, one) for key, one in vessels.items()}


def _at(level: float, one: Vessel) -> float:
    return max(one.stuck_bytes, min(one.wanted_bytes, level * one.weight))


def _enough(one: Vessel) -> float:
    return one.wanted_bytes / one.weight
