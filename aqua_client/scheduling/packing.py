"""Who is in the cache for the next iteration, and who has to go for it.

1. Whoever is within its slice stays. Each is counted with all that its slice will need, so that
   nobody runs out of blocks within one.
2. The others are asked in order of rank, those that run and those that wait alike: whoever fits
   beside those before it gets a slice. The first that does not fit is waited for: until slices
   have ended and it fits, nobody behind it comes in, or small ones would pass it for ever. Whoever
   would only stand in line for the batch's tokens stays outside, where it keeps nobody's blocks.
3. Of the residents who got no slice the last in rank are preempted, as few as make room for the
   slices; the rest goes on without one for as long as there are blocks, so that nothing idles.
"""

from __future__ import annotations

from collections.abc import Callable

from aqua_client.scheduling.plans import Room
from aqua_client.scheduling.requests import Request
from aqua_client.scheduling.settings import FairSettings
from aqua_client.scheduling.slices import Slices

SOON = 8  # parked ones that are named ahead

Rank = Callable[[Request], tuple[float, bool, int]]


class Packing:
    """Made for one iteration; its lists are the result."""

    def __init__(
        self,
        requests: list[Request],
        room: Room,
        settings: FairSettings,
        slices: Slices,
        rank: Rank,
    ) -> None:
        self._room, self._settings, self._slices = room, settings, slices
        self.preempted: list[Request] = []
        self.too_large: list[Request] = []
        self.next_parked: list[Request] = []
        residents = [one for one in requests if one.is_resident]
        self._total = room.free_blocks + sum(self._held(one) for one in residents)
        protected = [one for one in residents if one.is_protected]
        self._left = self._total - sum(self._claim(one, one.slice_left) for one in protected)
        ranked = sorted((one for one in requests if not one.is_protected), key=rank)
        if self._left < 0:  # blocks have vanished: slices end early, last in rank first
            ranked = sorted(self._ended_early(protected, rank) + ranked, key=rank)
        self.running = [one for one in protected if one.is_protected]
        losers = self._give_slices(ranked)
        self._make_room(losers)

    def _ended_early(self, protected: list[Request], rank: Rank) -> list[Request]:
        ended: list[Request] = []
        for request in sorted(protected, key=rank, reverse=True):
            if self._left >= 0:
                break
            self._left += self._claim(request, request.slice_left)
            request.slice_left = 0
            ended.append(request)
        return ended

    def _give_slices(self, ranked: list[Request]) -> list[Request]:
        """Returns the residents who got none, in order of rank."""
        losers: list[Request] = []
        awaited: Request | None = None
        for request in ranked:
            if not request.is_resident and self._would_only_queue(request):
                continue
            iterations = self._iterations(request)
            claim = self._claim(request, iterations)
            has_seat = len(self.running) < self._room.requests
            if awaited is None and has_seat and iterations and claim <= self._left:
                request.slice_left = iterations
                self._left -= claim
                self.running.append(request)
                continue
            if iterations:
                awaited = awaited or request
            else:
                self.too_large.append(request)
            if request.is_resident:
                losers.append(request)
            elif request.kv_tokens and len(self.next_parked) < SOON:
                self.next_parked.append(request)
        return losers

    def _make_room(self, losers: list[Request]) -> None:
        free = self._room.free_blocks - sum(
            self._claim(one, max(1, one.slice_left)) - self._held_now(one) for one in self.running
        )
        while losers and free < 0:
            victim = losers.pop()
            free += self._held(victim)
            self.preempted.append(victim)
        for request in losers:
            more = self._claim(request, 1) - self._held(request)
            if more <= free and len(self.running) < self._room.requests:
                free -= more
                self.running.append(request)

    def _would_only_queue(self, request: Request) -> bool:
        """Its prefill stands behind as much as the batch may compute."""
        if not request.is_prefilling:
            return False
        before = (one for one in self.running if one.is_prefilling)
        queue = (one.missing_tokens for one in before if one.kv_tokens <= request.kv_tokens)
        return sum(queue) >= self._room.tokens

    def _iterations(self, request: Request) -> int:
        """Of a slice, as many as the whole cache has blocks for; 0: it is too large."""
        most = self._total * self._settings.block_tokens - request.known_tokens + 1
        return max(0, min(most, self._slices.iterations(request)))

    def _claim(self, request: Request, iterations: int) -> int:
        """Blocks that it holds after so many new tokens."""
        return self._settings.blocks(request.known_tokens + iterations - 1)

    def _held(self, request: Request) -> int:
        return self._settings.blocks(request.kv_tokens)

    def _held_now(self, request: Request) -> int:
        return self._held(request) if request.is_resident else 0
