"""An engine that serves a language model: calm it lends KV memory, in a burst it takes all back."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from aqua_client.errors import InvalidRequest, InvalidSetting
from aqua_client.informing.decisions import (
    Decision,
    Figures,
    LlmFigures,
    Nothing,
    Reclaim,
    check_figures,
)
from aqua_client.informing.margins import Margins, Spare

MOST_REMEMBERED = 4096  # reports that a mean is made of: an engine may report each iteration


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmThresholds:
    """When an engine is busy, when it is calm. Between the two its offer stays as it is.

    Busy: *any* of the three reclaim thresholds, of which the free memory's stands in `margins`.
    Calm: *all* of the others, throughout `margins.settle_seconds`.
    """

    reclaim_pending: float = 10  # at or above
    offer_pending: float = 2  # at or below
    reclaim_rate: float = math.inf  # requests a second: above
    offer_rate: float = math.inf  # below
    mean_seconds: float = 0.0  # pending requests are their mean over so long; 0: as they are
    margins: Margins = field(default_factory=Margins)

    def __post_init__(self) -> None:
        """Refuse thresholds that would flap.

        Raises:
            InvalidSetting: names the key, its value and what is allowed.
        """
        if not 0 <= self.offer_pending < self.reclaim_pending:
            allowed = f"0 or more, and below reclaim_pending, {self.reclaim_pending}"
            raise InvalidSetting.of("offer_pending", self.offer_pending, allowed)
        if not 0 < self.offer_rate <= self.reclaim_rate:
            allowed = f"over 0, and at most reclaim_rate, {self.reclaim_rate}"
            raise InvalidSetting.of("offer_rate", self.offer_rate, allowed)
        if not 0 <= self.mean_seconds < math.inf:
            raise InvalidSetting.of("mean_seconds", self.mean_seconds, "0 or more seconds")


PAPER = LlmThresholds()

# What the paper's informer went by before: a reclaim when less than 800 MiB are left, when over 2
# requests wait in the mean, or over 1.5 come a second.
EARLIER = LlmThresholds(
    reclaim_pending=math.nextafter(2, 3),
    offer_pending=2,
    reclaim_rate=1.5,
    offer_rate=1.0,
    mean_seconds=10.0,
    margins=Margins(reclaim_spare_bytes=800 * 2**20, most_varied_bytes=300 * 10**6),
)


class LlmInformer:
    """Takes all back at 10 waiting requests, offers again at 2 or fewer, unless told otherwise.

    >>> informer = LlmInformer()
    >>> burst = LlmFigures(pending_requests=12, kv_used_bytes=2**30, kv_total_bytes=40 * 2**30)
    >>> informer.decide(burst, offered_bytes=2**34, now=0.0)
    Reclaim(nbytes=17179869184, reason='pending')
    >>> informer.decide(burst, offered_bytes=0, now=1.0)
    Nothing(reason='pending')
    """

    def __init__(self, thresholds: LlmThresholds = PAPER) -> None:
        self._thresholds = thresholds
        self._spare = Spare(thresholds.margins)
        self._reports: deque[tuple[float, int]] = deque()
        self._pending_sum = 0

    def decide(self, figures: Figures, *, offered_bytes: int, now: float) -> Decision:
        """See `Informer.decide`."""
        if not isinstance(figures, LlmFigures):
            msg = f"an LlmInformer is told LlmFigures, not {type(figures).__name__}"
            raise InvalidRequest(msg)
        check_figures(figures)
        pending = self._mean_pending(figures.pending_requests, now)
        free_bytes = max(0, figures.kv_total_bytes - figures.kv_used_bytes)
        limits, rate = self._thresholds, figures.requests_per_second
        if pending >= limits.reclaim_pending or rate > limits.reclaim_rate:
            self._spare.disturb()
            reason = "pending" if pending >= limits.reclaim_pending else "rate"
            return (
                Reclaim(nbytes=offered_bytes, reason=reason)
                if offered_bytes
                else Nothing(reason=reason)
            )
        if pending > limits.offer_pending or rate >= limits.offer_rate:
            self._spare.disturb()
            short = self._spare.shortage(free_bytes, offered_bytes=offered_bytes)
            return short or Nothing(reason="not_calm")
        return self._spare.look(free_bytes, offered_bytes=offered_bytes, now=now)

    def _mean_pending(self, pending: int, now: float) -> float:
        reports, oldest = self._reports, now - self._thresholds.mean_seconds
        reports.append((now, pending))
        self._pending_sum += pending
        while len(reports) > 1 and (reports[0][0] <= oldest or len(reports) > MOST_REMEMBERED):
            self._pending_sum -= reports.popleft()[1]
        return self._pending_sum / len(reports)
