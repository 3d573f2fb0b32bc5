"""How many iterations a slice has: a swap must cost less than a set share of it."""

from __future__ import annotations

import math

from aqua_client.scheduling.requests import Request
from aqua_client.scheduling.settings import FairSettings
from aqua_client.scheduling.swaps import Swap

SMOOTHING = 0.05  # of one iteration in the mean: prefills come and go within twenty


class Slices:
    """Knows how long an iteration takes by when plans are asked for."""

    def __init__(self, settings: FairSettings) -> None:
        self._settings = settings
        self._swap: Swap | None = None
        self._last = 0.0
        self._iteration_seconds: float | None = None
        self.computes = False  # in the iteration that was planned last

    def see(self, now: float, swap: Swap | None) -> None:
        """An iteration begins."""
        self._swap = swap
        if self.computes and now > self._last:
            seconds, mean = now - self._last, self._iteration_seconds
            self._iteration_seconds = (
                seconds if mean is None else mean + SMOOTHING * (seconds - mean)
            )
        self._last = now

    def iterations(self, request: Request) -> int:
        """Of the slice that this request would begin now."""
        settings = self._settings
        if self._swap is None or not self._iteration_seconds:
            return settings.slice_iterations
        seconds = self._swap.seconds(request.known_tokens, settings.block_tokens)
        needed = math.ceil(seconds / settings.swap_share / self._iteration_seconds)
        return min(settings.longest_slice_iterations, max(settings.slice_iterations, needed))
