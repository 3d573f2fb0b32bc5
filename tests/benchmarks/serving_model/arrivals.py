"""What comes when: a trace that is read, or one by chance with the quantiles of a real one.

The real one: the Azure LLM inference trace 2023, conversation (Microsoft Azure, AzurePublicDataset,
CC-BY 4.0; P. Patel et al., "Splitwise: Efficient generative LLM inference using phase splitting",
ISCA 2024): 19,366 requests in an hour, 5.5 a second, up to 16 in one and 98 in ten seconds; context
tokens p50 1,020 and p95 4,083, generated ones p50 129 and p95 451. None of its lines stand here.
"""

from __future__ import annotations

import csv
import datetime as dt
import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

HOUR_SECONDS = 3500.0
QUIET_PER_SECOND, PEAK_PER_SECOND = 3.6, 7.5  # at either end of the hour, and at its height
BURST_SECONDS = 10.0
MICROSECONDS = 26  # characters of a time that a datetime can hold; the trace has one digit more

# (share of requests, tokens that they have at most), straight between.
Quantiles = tuple[tuple[float, int], ...]
CONTEXT_TOKENS: Quantiles = (
    (0.0, 2), (0.1, 207), (0.25, 396), (0.5, 1020), (0.75, 1189), (0.9, 2735), (0.95, 4083),
    (0.99, 4142), (1.0, 14_000),
)  # fmt: skip
GENERATED_TOKENS: Quantiles = (
    (0.0, 7), (0.1, 54), (0.25, 85), (0.5, 129), (0.6, 177), (0.7, 384), (0.9, 424), (0.95, 451),
    (0.99, 601), (1.0, 1000),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request."""

    at: float  # seconds from the beginning
    prompt_tokens: int
    reply_tokens: int


def read(path: Path) -> list[Arrival]:
    """A file with the columns TIMESTAMP, ContextTokens, GeneratedTokens, in order of time."""
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    times = [dt.datetime.fromisoformat(row["TIMESTAMP"][:MICROSECONDS]) for row in rows]
    return [
        Arrival(
            at=(time - times[0]).total_seconds(),
            prompt_tokens=max(1, int(row["ContextTokens"])),
            reply_tokens=max(1, int(row["GeneratedTokens"])),
        )
        for time, row in zip(times, rows, strict=True)
    ]


def an_hour(seed: int) -> list[Arrival]:
    """By chance: a rate that rises and falls over the hour, lengths by the quantiles above."""
    chance = random.Random(seed)  # noqa: S311 - a story that repeats, no secret

    def rate(at: float) -> float:
        swell = math.sin(math.pi * at / HOUR_SECONDS) ** 2
        return QUIET_PER_SECOND + (PEAK_PER_SECOND - QUIET_PER_SECOND) * swell

    times = _poisson(chance, PEAK_PER_SECOND, HOUR_SECONDS)
    kept = (at for at in times if chance.random() < rate(at) / PEAK_PER_SECOND)
    return [_by_chance(chance, at) for at in kept]


def a_burst(size: int, *, per_second: float, seconds: float, seed: int) -> list[Arrival]:
    """A steady Poisson stream, and a third of the way through it *size* more at once."""
    chance = random.Random(seed)  # noqa: S311 - a story that repeats, no secret
    times = [*_poisson(chance, per_second, seconds), *[seconds / 3] * size]
    return [_by_chance(chance, at) for at in sorted(times)]


def around_the_highest_burst(arrivals: Sequence[Arrival], seconds: float) -> list[Arrival]:
    """So many seconds around the ten in which most came."""
    times = [one.at for one in arrivals]
    first = max(range(len(times)), key=lambda i: bisect_left(times, times[i] + BURST_SECONDS) - i)
    begin = times[first] - seconds / 2
    inside = arrivals[bisect_left(times, begin) : bisect_left(times, begin + seconds)]
    return [replace(one, at=one.at - begin) for one in inside]


def faster(arrivals: Iterable[Arrival], speed: float) -> list[Arrival]:
    """The same in less time."""
    return [replace(one, at=one.at / speed) for one in arrivals]


def _poisson(chance: random.Random, per_second: float, seconds: float) -> Iterator[float]:
    at = chance.expovariate(per_second)
    while at < seconds:
        yield at
        at += chance.expovariate(per_second)


def _by_chance(chance: random.Random, at: float) -> Arrival:
    return Arrival(
        at=at,
        prompt_tokens=_at_share(CONTEXT_TOKENS, chance.random()),
        reply_tokens=_at_share(GENERATED_TOKENS, chance.random()),
    )


def _at_share(quantiles: Quantiles, share: float) -> int:
    shares = [one for one, _ in quantiles]
    above = min(len(quantiles) - 1, bisect_right(shares, share))
    (low_share, low), (high_share, high) = quantiles[above - 1], quantiles[above]
    return round(low + (high - low) * (share - low_share) / (high_share - low_share))
