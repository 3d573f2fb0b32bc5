"""How many iterations a slice has: swaps must cost less than a set share of the engine's time.

A swap stops all who run, so what it costs is counted against its slice once for each of them: if
every resident were swapped at every slice's end, swaps would take `swap_share` of the time. A
newcomer's first slice is the shortest there is: it is what others wait for their first token by.
While many wait it is shorter still, which is for `packing` to say.
"""

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
        self._residents = 0
        self._last = 0.0
        self._iteration_seconds: float | None = None
        self.computes = False  # in the iteration that was planned last

    def see(self, now: float, swap: Swap | None, *, residents: int) -> None:
        """An iteration begins, with so many in the cache."""
        self._swap, self._residents = swap, residents
        if self.computes and now > self._last:
            seconds, mean = now - self._last, self._iteration_seconds
            self._iteration_seconds = (
                seconds if mean is None else mean + SMOOTHING * (seconds - mean)
            )
        self._last = now

    def iterations(self, request: Request) -> int:
        """Of the slice that this request would begin now."""
        settings = self._settings
        if self._swap is None or not self._iteration_seconds or not request.has_had_slice:
            return settings.slice_iterations
        swap_seconds = self._swap.seconds(request.known_tokens, settings.block_tokens)
        slice_seconds = swap_seconds * max(1, self._residents) / settings.swap_share
        needed = slice_seconds / self._iteration_seconds + request.owed_iterations
        growth = needed / request.known_tokens  # it grows meanwhile, and its swap becomes dearer
        longest = settings.longest_slice_iterations
        if growth >= 1 or needed / (1 - growth) >= longest:
            return longest
        return max(settings.slice_iterations, math.ceil(needed / (1 - growth)))
