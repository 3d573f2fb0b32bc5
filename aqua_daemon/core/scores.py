"""What links were measured as, and what follows from it: who is slow, and what a lender is worth.

Covers the newest figure of each link, their medians, and the sums of what a GPU sends and takes.
Does not cover measuring (`probing`) nor the choice of a lender (`links`, `placement`). Everything that
a grant asks for is worked out when a figure comes, which is seldom.

1. A lender is worth what its link carries in the slower direction: what is parked comes back, too.
2. Figures within a tenth are equal: that is noise, and less than what room or sharing is worth.
3. What clients say of real fetches refines that, but is trusted for order only: it names nobody as slow
   and forbids nothing. Everybody's fetches take longer than bare copies, so what counts of a link is
   how it does beside the one that does best; and never more than by half.
4. A GPU is slow whose best link is so much slower than that of the median GPU; then a link is slow that
   is so among those of the others. So one slow GPU is named, and not each link to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from aqua_daemon.core.link_figures import EVERY, HOST, LinkUse
from aqua_daemon.core.model import GpuPair, GpuUuid, LinkRate
from aqua_daemon.core.node_snapshot import LinkSnapshot
from aqua_daemon.core.sizes import MIB, SLOW_FACTOR

LEAST_USED_BYTES = 16 * MIB  # of one word of a client: less is mostly what each fetch costs besides
NEW_USE_WEIGHT = 0.2  # of a client's newest word beside all that came before
LEAST_PART = 0.5
_EQUAL = math.log(1.1)
_KeyT = TypeVar("_KeyT", GpuUuid, GpuPair)


class LinkScores:
    """All of one node."""

    def __init__(
        self, kept: Mapping[GpuPair, LinkRate] | None = None, *, gpus: Iterable[GpuUuid] = ()
    ) -> None:
        """What was *kept* of links between these *gpus*: others are not here any more."""
        ends = {*gpus, HOST, EVERY}
        self.rates: dict[GpuPair, LinkRate] = {
            pair: rate for pair, rate in (kept or {}).items() if {pair.source, pair.target} <= ends
        }
        self.slow_gpus: dict[GpuUuid, str] = {}  # and by how much
        self.slow_links: dict[GpuPair, str] = {}
        self._used: dict[GpuPair, float] = {}  # the part of its rate that fetches get
        # By lender and borrower, the slower direction: bytes a second.
        self._narrower: dict[tuple[GpuUuid, GpuUuid], float] = {}
        self._worth: dict[tuple[GpuUuid, GpuUuid], float] = {}  # the same, but for noise
        self._sums: dict[tuple[GpuUuid, GpuUuid], float] = {}
        self._slow_between: set[tuple[GpuUuid, GpuUuid]] = set()  # in either order
        self._judge()

    def note(self, pair: GpuPair, rate: LinkRate) -> None:
        """A link was measured alone."""
        self.rates[pair] = rate
        self._used.pop(pair, None)  # that was beside another figure
        self._judge()

    def note_sum(self, pairs: Sequence[GpuPair], bytes_per_second: float) -> None:
        """Links of one GPU were measured at the same time, and that is what they carry together."""
        sources, targets = {one.source for one in pairs}, {one.target for one in pairs}
        rate = LinkRate(latency_seconds=0.0, bytes_per_second=bytes_per_second)
        if len(sources) == 1:
            self.note(GpuPair(source=sources.pop(), target=EVERY), rate)
        elif len(targets) == 1:
            self.note(GpuPair(source=EVERY, target=targets.pop()), rate)

    def refine(self, uses: Iterable[LinkUse], borrower: GpuUuid) -> None:
        """Fetches took so long; nothing is made of few bytes, or of links that were not measured."""
        for use in uses if self.rates else ():
            self._take_use(use, borrower)
        self._weigh()

    def worth(self, lender: GpuUuid, borrower: GpuUuid) -> float:
        """What goes between the two, both ways, with nobody else there; 0.0: it was not measured."""
        return self._worth.get((lender, borrower), 0.0)

    def is_slow(self, lender: GpuUuid, borrower: GpuUuid) -> bool:
        """Whether others should lend first."""
        return lender in self.slow_gpus or (lender, borrower) in self._slow_between

    def sent(self, gpu: GpuUuid) -> float:
        """Bytes a second that it sends to all others at the same time; 0.0: it was not measured."""
        return self._sums.get((gpu, EVERY), 0.0)

    def taken(self, gpu: GpuUuid) -> float:
        """The same of what it takes from all of them."""
        return self._sums.get((EVERY, gpu), 0.0)

    def why_slower_than_host(self, lender: GpuUuid, borrower: GpuUuid) -> str | None:
        """Why host memory is as good, by what was measured of both; empty: it is not; None: unknown."""
        peer, host = (self._narrower.get((one, borrower)) for one in (lender, HOST))
        if peer is None or host is None:
            return None
        if peer > host:
            return ""
        return f"{peer / 1e9:.1f} GB/s were measured to it, {host / 1e9:.1f} to host memory"

    def slowness(self, gpu: GpuUuid) -> tuple[str, ...]:
        """What an operator should know of a GPU's links; empty: nothing."""
        words = [f"its links are {self.slow_gpus[gpu]}"] if gpu in self.slow_gpus else []
        words += [
            f"its link to {pair.target} is {how}"
            for pair, how in self.slow_links.items()
            if pair.source == gpu
        ]
        return tuple(f"{word}: others lend first (aquactl bench links)" for word in words)

    def snapshot(self) -> tuple[LinkSnapshot, ...]:
        """Every link that was measured."""
        return tuple(
            LinkSnapshot(pair=pair, rate=rate, slow=self._slowness(pair))
            for pair, rate in self.rates.items()
        )

    def _take_use(self, use: LinkUse, borrower: GpuUuid) -> None:
        pair = GpuPair(source=use.lender, target=borrower)
        rate = self.rates.get(pair)
        if use.lender in {HOST, EVERY}:  # no GPU's names, whatever a client says
            return
        if rate is None or use.nbytes < LEAST_USED_BYTES or use.seconds <= 0 or use.fetches <= 0:
            return
        bare_seconds = use.fetches * rate.latency_seconds + use.nbytes / rate.bytes_per_second
        part = min(1.0, bare_seconds / use.seconds)
        before = self._used.get(pair, part)
        self._used[pair] = before + NEW_USE_WEIGHT * (part - before)

    def _slowness(self, pair: GpuPair) -> str:
        if {HOST, EVERY} & {pair.source, pair.target}:
            return ""
        ends = (self.slow_gpus.get(pair.source, ""), self.slow_gpus.get(pair.target, ""))
        return self.slow_links.get(pair) or ends[0] or ends[1]

    def _weigh(self) -> None:
        """What each link is worth, by the part of it that fetches get beside the link that does best."""
        best = max(self._used.values(), default=1.0)
        self._worth = {ends: _coarse(found) for ends, found in self._narrower.items()}
        for pair, used in self._used.items():
            ends = (pair.source, pair.target)
            self._worth[ends] = _coarse(self._narrower[ends] * max(LEAST_PART, used / best))

    def _best_links(self) -> dict[GpuUuid, float]:
        """What each GPU's best link carries in its slower direction."""
        best: dict[GpuUuid, float] = {}
        for (gpu, peer), found in self._narrower.items():
            if HOST not in {gpu, peer}:
                best[gpu] = max(found, best.get(gpu, found))
        return best

    def _judge(self) -> None:
        self._narrower, self._sums = {}, {}
        for pair, rate in self.rates.items():
            if EVERY in {pair.source, pair.target}:
                self._sums[pair.source, pair.target] = _coarse(rate.bytes_per_second)
                continue
            for ends in ((pair.source, pair.target), (pair.target, pair.source)):
                found = rate.bytes_per_second
                self._narrower[ends] = min(found, self._narrower.get(ends, found))
        self._weigh()
        self.slow_gpus = _slow(self._best_links())
        left_out = {HOST, EVERY, *self.slow_gpus}
        self.slow_links = _slow(
            {
                pair: rate.bytes_per_second
                for pair, rate in self.rates.items()
                if not left_out & {pair.source, pair.target}
            }
        )
        self._slow_between = {
            ends
            for pair in self.slow_links
            for ends in ((pair.source, pair.target), (pair.target, pair.source))
        }


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
