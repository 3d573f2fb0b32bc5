"""What links were measured as, and what follows from it: who is slow, and what a lender is worth.

Covers the newest figure of each link, their medians, and the sums of what a GPU sends and takes.
Does not cover measuring (`probing`) nor the choice of a lender (`links`, `placement`). Everything that
a grant asks for is worked out when a figure comes, which is seldom.

1. A lender is worth what its link carries in the slower direction: what is parked comes back, too.
2. Figures within a tenth are equal: that is noise, and less than what room or sharing is worth.
3. A GPU is slow whose links are, in the mean, so much slower than those of the median GPU; then a link
   is slow that is so among those of the others. So one slow GPU is named, not each link to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from aqua_daemon.core.link_figures import HOST, GpuPair, LinkRate
from aqua_daemon.core.model import GpuUuid
from aqua_daemon.core.sizes import SLOW_FACTOR

_EQUAL = math.log(1.1)
_KeyT = TypeVar("_KeyT", GpuUuid, GpuPair)


class LinkScores:
    """All of one node."""

    def __init__(self, kept: Mapping[GpuPair, LinkRate] | None = None) -> None:
        self.rates: dict[GpuPair, LinkRate] = dict(kept or {})
        self.sent: dict[
            GpuUuid, float
        ] = {}  # bytes a second that a GPU sends to all others at once
        self.taken: dict[GpuUuid, float] = {}  # and that it takes from all of them
        self.slow_gpus: dict[GpuUuid, str] = {}  # and by how much
        self.slow_links: dict[GpuPair, str] = {}
        # By lender and borrower, the slower direction: bytes a second.
        self._worth: dict[tuple[GpuUuid, GpuUuid], float] = {}
        self._judge()

    def note(self, pair: GpuPair, rate: LinkRate) -> None:
        """A link was measured alone."""
        self.rates[pair] = rate
        self._judge()

    def worth(self, lender: GpuUuid, borrower: GpuUuid | None) -> float:
        """What goes between the two, both ways, with nobody else there; 0.0: it was not measured."""
        return 0.0 if borrower is None else self._worth.get((lender, borrower), 0.0)

    def is_slow(self, lender: GpuUuid, borrower: GpuUuid | None) -> bool:
        """Whether others should lend first."""
        if not self.slow_gpus and not self.slow_links:
            return False
        if lender in self.slow_gpus or borrower is None:
            return lender in self.slow_gpus
        ways = (GpuPair(source=lender, target=borrower), GpuPair(source=borrower, target=lender))
        return any(way in self.slow_links for way in ways)

    def why_slower_than_host(self, lender: GpuUuid, borrower: GpuUuid) -> str:
        """Why host memory is as good, by what was measured of both; else empty."""
        worth, host = self.worth(lender, borrower), self.worth(HOST, borrower)
        if not worth or not host or worth > host:
            return ""
        return f"{worth / 1e9:.1f} GB/s were measured to it, {host / 1e9:.1f} to host memory"

    def beats_host(self, lender: GpuUuid, borrower: GpuUuid) -> bool:
        """Whether both were measured, and the peer is faster."""
        return 0.0 < self.worth(HOST, borrower) < self.worth(lender, borrower)

    def _judge(self) -> None:
        self._worth = {}
        for pair, rate in self.rates.items():
            for ends in ((pair.source, pair.target), (pair.target, pair.source)):
                worth = _coarse(rate.bytes_per_second)
                self._worth[ends] = min(worth, self._worth.get(ends, worth))
        peers = {
            pair: rate.bytes_per_second
            for pair, rate in self.rates.items()
            if HOST not in {pair.source, pair.target}
        }
        self.slow_gpus = _slow(_means(peers))
        rest = {
            pair: one
            for pair, one in peers.items()
            if not {pair.source, pair.target} & self.slow_gpus.keys()
        }
        self.slow_links = _slow(rest)


def _means(peers: Mapping[GpuPair, float]) -> dict[GpuUuid, float]:
    of_gpu: dict[GpuUuid, list[float]] = {}
    for pair, bytes_per_second in peers.items():
        of_gpu.setdefault(pair.source, []).append(bytes_per_second)
        of_gpu.setdefault(pair.target, []).append(bytes_per_second)
    return {gpu: sum(found) / len(found) for gpu, found in of_gpu.items()}


def _slow(found: Mapping[_KeyT, float]) -> dict[_KeyT, str]:
    middle = _median(sorted(found.values())) if found else 0.0
    return {
        key: f"{middle / one:.1f} times slower than the node's median, {one / 1e9:.1f} of {middle / 1e9:.1f} GB/s"
        for key, one in found.items()
        if one * SLOW_FACTOR <= middle
    }


def _median(rising: Sequence[float]) -> float:
    half = len(rising) // 2
    return rising[half] if len(rising) % 2 else (rising[half - 1] + rising[half]) / 2


def _coarse(bytes_per_second: float) -> float:
    return math.exp(round(math.log(bytes_per_second) / _EQUAL) * _EQUAL)
