"""Says in the log that requests are computed again: the first at once, then how many, once a minute.

A full node has hundreds of them in a burst, for one reason. Each is counted, `stats()["recomputed"]`
and `aqua_serving_recomputed_total`: that is what to watch, and to raise an alarm at.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger("aqua")

EVERY_SECONDS = 60.0


class Telling:
    """Of one engine; one thread at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None  # when it was told last
        self._untold = 0

    def computed_again(self, request_id: str, why: Exception) -> None:
        """It lost what it had, or could not be parked."""
        now = self._clock()
        if self._since is None:
            logger.warning(
                "request %s is computed again: %s (of more there is a line a minute; all are "
                'counted in stats()["recomputed"])',
                request_id,
                why,
            )
            self._since = now
            return
        self._untold += 1
        if now - self._since >= EVERY_SECONDS:
            seconds = now - self._since
            logger.warning(
                "%d requests more are computed again since %.0f s ago, the last is %s: %s",
                self._untold,
                seconds,
                request_id,
                why,
            )
            self._since, self._untold = now, 0
