"""The rounds of a rival: park, bring back, forget; medians of each, as one line of JSON."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any  # what stands for a parked tensor is the rival's own affair

WARM_ROUNDS = 5
CLOCK = time.perf_counter


def medians_us(
    park: Callable[[], Any],
    back: Callable[[Any], object],
    forget: Callable[[Any], object],
    *,
    rounds: int,
) -> dict[str, float]:
    """Microseconds of each step, the median over *rounds* after the warm ones."""
    return _steps_us(park, back, forget, rounds, statistics.median)


def least_us(
    park: Callable[[], Any],
    back: Callable[[Any], object],
    forget: Callable[[Any], object],
    *,
    rounds: int,
) -> dict[str, float]:
    """The least of them: for steps so long that others have a turn at the processor in most."""
    return _steps_us(park, back, forget, rounds, min)


def _steps_us(
    park: Callable[[], Any],
    back: Callable[[Any], object],
    forget: Callable[[Any], object],
    rounds: int,
    pick: Callable[[Sequence[float]], float],
) -> dict[str, float]:
    parks, backs, forgets = [], [], []
    for _ in range(rounds + WARM_ROUNDS):
        start = CLOCK()
        parked = park()
        was_parked = CLOCK()
        back(parked)
        was_back = CLOCK()
        forget(parked)
        del parked  # for those that forget what nobody refers to
        forgotten = CLOCK()
        parks.append(was_parked - start)
        backs.append(was_back - was_parked)
        forgets.append(forgotten - was_back)
    steps = {"park_us": parks, "back_us": backs, "forget_us": forgets}
    return {name: pick(row[WARM_ROUNDS:]) * 1e6 for name, row in steps.items()}


def say(found: dict[str, dict[str, float]]) -> None:
    """To whoever started the program."""
    print(json.dumps(found), flush=True)
