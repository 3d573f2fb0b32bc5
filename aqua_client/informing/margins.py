"""How much an engine keeps for itself, and how calm it must be before it offers more.

Hysteresis, said once. An offer leaves `retain_bytes`; it grows only by `band_bytes` or more, and
only to what was free throughout `settle_seconds`; it shrinks at once, but only when less than
`reclaim_spare_bytes` is left. So a load that swings by less than `retain_bytes -
reclaim_spare_bytes` takes nothing back, one that swings by less than `band_bytes` offers nothing
more, and between two offers, or a reclaim and an offer, `settle_seconds` pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from aqua_client.errors import InvalidSetting
from aqua_client.informing.decisions import Decision, Lend, Nothing, Reclaim

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Margins:
    """The first two are the paper's. Offers are made where at least `least_free_bytes` are free."""

    retain_bytes: int = 5 * GIB
    least_free_bytes: int = 10 * GIB
    reclaim_spare_bytes: int = 5 * GIB // 2
    band_bytes: int = GIB
    settle_seconds: float = 30.0
    most_varied_bytes: int | None = None  # in that time, for an offer; None: however much

    def __post_init__(self) -> None:
        """Refuse margins that would flap.

        Raises:
            InvalidSetting: names the key, its value and what is allowed.
        """
        if not 0 <= self.retain_bytes <= self.least_free_bytes:
            allowed = f"0 to least_free_bytes, {self.least_free_bytes}"
            raise InvalidSetting.of("retain_bytes", self.retain_bytes, allowed)
        if not 0 <= self.reclaim_spare_bytes <= self.retain_bytes:
            allowed = f"0 to retain_bytes, {self.retain_bytes}"
            raise InvalidSetting.of("reclaim_spare_bytes", self.reclaim_spare_bytes, allowed)
        if self.band_bytes < 0:
            raise InvalidSetting.of("band_bytes", self.band_bytes, "0 or more bytes")
        if not (math.isfinite(self.settle_seconds) and self.settle_seconds > 0):
            raise InvalidSetting.of("settle_seconds", self.settle_seconds, "over 0 seconds")

    def offer_of(self, free_bytes: int) -> int:
        """What may be lent where *free_bytes* are free."""
        return free_bytes - self.retain_bytes if free_bytes >= self.least_free_bytes else 0


class Spare:
    """What an engine has had to spare while it was calm."""

    def __init__(self, margins: Margins) -> None:
        self._margins = margins
        self._since = math.inf  # when the window began; inf: it begins with the next look
        self._lowest_bytes = 0
        self._highest_bytes = 0

    def disturb(self) -> None:
        """The engine is not calm: what was free until now says nothing."""
        self._since = math.inf

    def shortage(self, free_bytes: int, *, offered_bytes: int) -> Reclaim | None:
        """What is needed back because the engine has grown into what it was to keep."""
        if not offered_bytes or free_bytes - offered_bytes >= self._margins.reclaim_spare_bytes:
            return None
        self.disturb()
        kept_bytes = self._margins.offer_of(free_bytes)
        return Reclaim(nbytes=offered_bytes - kept_bytes, reason="short")

    def look(self, free_bytes: int, *, offered_bytes: int, now: float) -> Decision:
        """Of *free_bytes* that the engine does not use, *offered_bytes* are offered."""
        short = self.shortage(free_bytes, offered_bytes=offered_bytes)
        if short is not None:
            return short
        if now < self._since:
            self._begin(free_bytes, now)
        self._lowest_bytes = min(self._lowest_bytes, free_bytes)
        self._highest_bytes = max(self._highest_bytes, free_bytes)
        if now - self._since < self._margins.settle_seconds:
            return Nothing(reason="settling")
        lowest_bytes, varied_bytes = self._lowest_bytes, self._highest_bytes - self._lowest_bytes
        self._begin(free_bytes, now)
        most = self._margins.most_varied_bytes
        if most is not None and varied_bytes >= most:
            return Nothing(reason="varies")
        offer_bytes = self._margins.offer_of(lowest_bytes)
        more_bytes = offer_bytes - offered_bytes
        if more_bytes <= 0 or (offered_bytes and more_bytes < self._margins.band_bytes):
            return Nothing(reason="no_more")
        return Lend(nbytes=offer_bytes, reason="spare")

    def _begin(self, free_bytes: int, now: float) -> None:
        self._since = now
        self._lowest_bytes = self._highest_bytes = free_bytes
