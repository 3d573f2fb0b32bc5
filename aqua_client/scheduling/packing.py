"""Who is in the cache for the next iteration, and who has to go for it.

1. Whoever is within its slice stays. Of a slice the first `slice_iterations` are sure: their blocks
   are counted as taken. The rest, which is there to save swaps where they are dear, lasts for as long
   as there are blocks: none are kept empty for it, and what it ends early the next is longer by.
2. Newcomers are asked first, for as long as newcomers have no more than their share of the cache:
   however many come, the rest of it serves those who came before. While more of them wait than may
   come in so, their slices are shorter: it is what the last of them waits by for its first token.
3. Then all others, in order of rank, those that run and those that wait alike: whoever fits beside
   those before it gets a slice. The first that does not fit is waited for: until slices have ended
   and it fits, nobody behind it comes in, or small ones would pass it for ever. Whoever would only
   stand in line for the batch's tokens stays outside, where it keeps nobody's blocks.
4. Of the residents who got no slice the last in rank are preempted, as few as make room for the
   slices; the rest goes on without one for as long as there are blocks, so that nothing idles.

A batch reads the cache, too, and no more of it than `Room.kv_tokens`: where requests share blocks,
each reads them anew, and all that fit into the cache need not fit into one batch. A claim is counted
against both, and whoever is left over keeps its blocks and waits for a turn like everybody else.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from aqua_client.scheduling.plans import Room
from aqua_client.scheduling.ranks import Rank, rank
from aqua_client.scheduling.requests import Request
from aqua_client.scheduling.settings import FairSettings
from aqua_client.scheduling.slices import Slices
from aqua_client.scheduling.waiting import Waiting

SOON = 8  # parked ones that are named ahead


class Packing:
    """Made for one iteration; its lists are the result."""

    def __init__(
        self,
        residents: Iterable[Request],
        waiting: Waiting,
        *,
        room: Room,
        settings: FairSettings,
        slices: Slices,
    ) -> None:
        self._room, self._settings, self._slices = room, settings, slices
        self._waiting = waiting
        self.running: list[Request] = []
        self.preempted: list[Request] = []
        self.too_large: list[Request] = []
        self.total_blocks = room.free_blocks  # of the whole cache
        self._left = room.free_blocks  # that nobody's slice needs
        self._readable = room.kv_tokens  # that nobody's slice reads
        self._newcomer_blocks = self._newcomer_tokens = self._newcomers = 0
        self._queue_tokens = 0  # of prompts that nothing has been computed of yet
        protected: list[Request] = []
        loose: list[Request] = []
        for request in residents:
            held = settings.blocks(request.kv_tokens)
            self.total_blocks += held
            self._left += held
            (protected if request.slice_left else loose).append(request)
        self._is_rush = self._newcomers_are_too_many()
        self._keep(protected, loose)
        losers = self._give_slices(loose)
        self._make_room(losers)

    def next_parked(self) -> list[Request]:
        """Those that are parked and come next, in order."""
        chosen = {one.request_id for one in self.running}
        parked = (one for _, one in self._waiting.parked if one.is_parked)
        return list(islice((one for one in parked if one.request_id not in chosen), SOON))

    def _keep(self, protected: list[Request], loose: list[Request]) -> None:
        claims = {one.request_id: self._sure_claim(one) for one in protected}
        self._left -= sum(map(self._settings.blocks, claims.values()))
        self._readable -= sum(claims.values())
        if self._is_short:  # slices end early: those that are not sure first, last in rank first
            protected.sort(key=lambda one: (not one.sure_left, rank(one, self._settings)))
            while protected and self._is_short:
                request = protected.pop()
                self._left += self._settings.blocks(claims[request.request_id])
                self._readable += claims[request.request_id]
                request.owed_iterations = request.slice_left
                request.slice_left = request.sure_left = 0
                loose.append(request)
        for request in protected:
            self._let_run(request, claims[request.request_id])

    def _give_slices(self, loose: list[Request]) -> list[Request]:
        """Returns the residents who got none, in order of rank."""
        ranked = sorted((rank(one, self._settings), one) for one in loose)
        given: set[str] = set()
        for request in chain(self._newcomers_first(), self._by_rank(ranked)):
            if request.request_id in given or self._would_only_queue(request):
                continue
            iterations = self._iterations(request)
            if not iterations:
                if request not in self.too_large:
                    self.too_large.append(request)
                continue
            sure = min(iterations, self._settings.slice_iterations)
            claim = self._claim(request, sure)
            blocks = self._settings.blocks(claim)
            if blocks > self._left or claim > self._readable or self._is_crowded:
                break
            given.add(request.request_id)
            request.slice_left = iterations
            request.sure_left = sure
            request.owed_iterations = 0
            self._left -= blocks
            self._readable -= claim
            self._let_run(request, claim)
        return [one for _, one in ranked if not one.slice_left]

    def _newcomers_first(self) -> Iterator[Request]:
        share = self._settings.newcomer_share
        tokens = self._room.tokens * (share if len(self._waiting.lost) else 1.0)
        for _, request in self._waiting.newcomers:
            claim = self._claim(request, self._iterations(request))
            blocks = self._newcomer_blocks + self._settings.blocks(claim)
            if (
                blocks > share * self.total_blocks
                or self._newcomer_tokens + claim > share * self._room.kv_tokens
                or self._newcomers >= share * self._room.requests
                or self._queue_tokens >= tokens
            ):
                return
            yield request

    def _newcomers_are_too_many(self) -> bool:
        """More than one waits, and even of an empty cache their share is too small for all."""
        settings, waiting, blocks = self._settings, self._waiting.newcomers, 0
        if len(waiting) > max(1.0, settings.newcomer_share * self._room.requests):
            return True
        for _, one in waiting:
            blocks += settings.blocks(self._claim(one, settings.slice_iterations))
            if blocks > settings.newcomer_share * self.total_blocks:
                return len(waiting) > 1
        return False

    def _by_rank(self, loose: list[tuple[Rank, Request]]) -> Iterator[Request]:
        waiting = self._waiting
        for _, request in heapq.merge(loose, waiting.parked, waiting.lost, waiting.newcomers):
            yield request

    def _make_room(self, losers: list[Request]) -> None:
        free = self._room.free_blocks - sum(
            self._settings.blocks(self._sure_claim(one)) - self._held(one) for one in self.running
        )
        while losers and free < 0:
            victim = losers.pop()
            free += self._held(victim)
            self.preempted.append(victim)
        for request in losers:
            claim = self._claim(request, 1)
            more = self._settings.blocks(claim) - self._held(request)
            if more <= free and claim <= self._readable and not self._is_crowded:
                free -= more
                self._readable -= claim
                self.running.append(request)

    @property
    def _is_short(self) -> bool:
        return self._left < 0 or self._readable < 0

    @property
    def _is_crowded(self) -> bool:
        return len(self.running) >= self._room.requests

    def _would_only_queue(self, request: Request) -> bool:
        """Before its prompt stand as many tokens as the batch may compute."""
        is_outside = not request.is_resident and request.is_prefilling
        return is_outside and self._queue_tokens >= self._room.tokens

    def _let_run(self, request: Request, claim: int) -> None:
        self.running.append(request)
        if not request.has_had_slice:
            self._newcomers += 1
            self._newcomer_blocks += self._settings.blocks(claim)
            self._newcomer_tokens += claim
        if request.is_prefilling and not request.kv_tokens:
            self._queue_tokens += request.missing_tokens

    def _iterations(self, request: Request) -> int:
        """Of a slice, as many as the whole cache has blocks for; 0: it is too large."""
        tokens = min(self.total_blocks * self._settings.block_tokens, self._room.kv_tokens)
        most = tokens - request.known_tokens + 1
        wanted = self._slices.iterations(request)
        if self._is_rush and not request.has_had_slice:
            wanted = min(wanted, self._settings.rush_slice_iterations)
        return max(0, min(most, wanted))

    def _claim(self, request: Request, iterations: int) -> int:
        """Tokens that it has in the cache after so many new ones."""
        return request.known_tokens + iterations - 1

    def _sure_claim(self, request: Request) -> int:
        """Those for which there is room: what it is sure of, and at least its next token."""
        return self._claim(request, max(1, request.sure_left))

    def _held(self, request: Request) -> int:
        return self._settings.blocks(request.kv_tokens) if request.is_resident else 0
