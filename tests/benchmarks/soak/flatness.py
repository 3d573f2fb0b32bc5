"""Whether what a process holds stays as it is: samples, and the judgement over them.

The median of the first fifth after the warm-up against the median of the last: what comes and goes
with the work cancels out, what only grows does not. Of descriptors it is nearly the most, and a
client may come to have a gRPC channel more: it opens one only when it has something to ask.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from tests.benchmarks.figure import percentile
from tests.benchmarks.processes import Cost

GROWTH_SHARE = 0.05
GROWTH_BYTES = 4 * 2**20  # arenas and caches of an interpreter
GROWTH_DESCRIPTORS = 2
CHANNEL_DESCRIPTORS = 5
POINTS = 60  # of each series, that are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Flatness:
    """Of one process over its time."""

    own_bytes_first: float
    own_bytes_last: float
    rss_bytes_last: float
    descriptors_first: float  # without those of lent memory
    descriptors_last: float
    may_open: int  # descriptors that are not held against it
    cpu_share: float  # of one core
    seconds: float
    own_mib: Sequence[float]  # the series, for people to look at

    @property
    def failures(self) -> list[str]:
        """What is not flat."""
        grown = self.own_bytes_last - self.own_bytes_first
        more = self.descriptors_last - self.descriptors_first
        found = []
        if grown > GROWTH_SHARE * self.own_bytes_first + GROWTH_BYTES:
            found.append(f"memory grew by {grown / 2**20:.1f} MiB")
        if more > GROWTH_DESCRIPTORS + self.may_open:
            found.append(f"{more:g} descriptors more")
        return found

    def document(self) -> dict[str, object]:
        """For the result file."""
        return {**asdict(self), "failures": self.failures}


class Watch:
    """The samples of one process."""

    def __init__(self, *, may_open: int = 0) -> None:
        self._may_open = may_open
        self._samples: list[tuple[float, Cost]] = []

    def see(self, pid: int, *, at: float) -> None:
        """Take a sample."""
        self.add(Cost.of(pid), at=at)

    def add(self, cost: Cost, *, at: float) -> None:
        """Another sample."""
        self._samples.append((at, cost))

    def judged(self, *, warm_at: float) -> Flatness:
        """Over what was seen after *warm_at*."""
        samples = [(at, cost) for at, cost in self._samples if at >= warm_at]
        (began, first), (ended, last) = samples[0], samples[-1]
        fifth = max(1, len(samples) // 5)

        def median(part: slice, what: Callable[[Cost], float]) -> float:
            return statistics.median(what(cost) for _, cost in samples[part])

        head, tail = slice(fifth), slice(-fifth, None)
        step = max(1, len(self._samples) // POINTS)
        return Flatness(
            own_bytes_first=median(head, lambda cost: cost.own_bytes),
            own_bytes_last=median(tail, lambda cost: cost.own_bytes),
            rss_bytes_last=median(tail, lambda cost: cost.rss_bytes),
            descriptors_first=percentile([_descriptors(cost) for _, cost in samples[head]], 95),
            descriptors_last=percentile([_descriptors(cost) for _, cost in samples[tail]], 95),
            may_open=self._may_open,
            cpu_share=(last.cpu_seconds - first.cpu_seconds) / max(ended - began, 1e-9),
            seconds=ended - began,
            own_mib=[round(cost.own_bytes / 2**20, 1) for _, cost in self._samples[::step]],
        )


def _descriptors(cost: Cost) -> int:
    return cost.descriptors - cost.slabs
