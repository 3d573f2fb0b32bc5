"""What was measured of links, and what two sizes of copies tell: records and one pure function.

A link is an ordered pair: bytes go from its source to its target, and both ways may differ. `HOST`
stands for host memory at either end, `EVERY` for all other GPUs at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aqua_daemon.core.model import GpuPair, GpuUuid, LinkRate

HOST, EVERY = GpuUuid("host"), GpuUuid("all")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSample:
    """How long one copy of a size takes."""

    nbytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOutcome:
    """What came of measuring one link."""

    pair: GpuPair
    samples: tuple[LinkSample, ...] = ()
    problem: str = ""  # why there are none


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkUse:
    """What a client says of its fetches from one GPU. Trusted for order only."""

    lender: GpuUuid
    fetches: int
    nbytes: int
    seconds: float


def rate_of(samples: Sequence[LinkSample]) -> LinkRate:
    """What the smallest and the largest copy tell; *samples* are of rising sizes, one at least."""
    small, large = samples[0], samples[-1]
    more_seconds = large.seconds - small.seconds
    if large.nbytes == small.nbytes or more_seconds <= 0:  # noise, or nothing to compare with
        return LinkRate(latency_seconds=0.0, bytes_per_second=large.nbytes / large.seconds)
    bytes_per_second = (large.nbytes - small.nbytes) / more_seconds
    latency_seconds = max(0.0, small.seconds - small.nbytes / bytes_per_second)
    return LinkRate(latency_seconds=latency_seconds, bytes_per_second=bytes_per_second)
