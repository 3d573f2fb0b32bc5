"""The scheduler: what it is told, and its plan for the next iteration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from aqua_client.errors import InvalidRequest
from aqua_client.scheduling.chunks import shares
from aqua_client.scheduling.packing import Packing
from aqua_client.scheduling.plans import Admission, Plan, Room
from aqua_client.scheduling.requests import Request
from aqua_client.scheduling.settings import FairSettings, Order
from aqua_client.scheduling.slices import Slices
from aqua_client.scheduling.swaps import Swap
from aqua_client.scheduling.turnover import Turnover
from aqua_client.scheduling.waiting import Waiting

SOONEST_RETRY_SECONDS = 1.0  # a client that is refused asks no sooner


class FairScheduler:
    """Gives every request its share of an engine. See the package for how it is driven.

    >>> scheduler = FairScheduler(FairSettings(block_tokens=16))
    >>> scheduler.add("a", prompt_tokens=30, now=0.0)
    >>> scheduler.plan(0.0, Room(tokens=2048, free_blocks=8)).run
    (Share(request_id='a', tokens=30),)
    >>> scheduler.ran("a", 30)
    >>> scheduler.plan(0.1, Room(tokens=2048, free_blocks=6)).run
    (Share(request_id='a', tokens=1),)
    """

    def __init__(self, settings: FairSettings | None = None) -> None:
        self._settings = settings or FairSettings()
        self._requests: dict[str, Request] = {}
        self._numbers = itertools.count()
        self._residents: dict[str, Request] = {}
        self._waiting = Waiting(self._settings)
        self._slices = Slices(self._settings)
        self._turnover = Turnover()
        self._cache_blocks: int | None = None  # of the whole cache, when it was last planned
        self._is_full = False  # in the iteration that was planned last somebody waits
        self._floor = 0.0  # the least virtual run time that anybody has, which never falls

    @property
    def requests(self) -> Mapping[str, Request]:
        """All that were added and not removed. Read only."""
        return self._requests

    def add(self, request_id: str, *, prompt_tokens: int, now: float, weight: float = 1.0) -> None:
        """A newcomer, whose virtual run time begins at the least that anybody has.

        Raises:
            InvalidRequest: it is there already, has no prompt, or a weight that can't be.
        """
        if request_id in self._requests:
            msg = f"request {request_id!r} was added already"
            raise InvalidRequest(msg)
        if prompt_tokens < 1 or not 0 < weight < math.inf:
            msg = f"{prompt_tokens=} is to be 1 or more, {weight=} over 0 and finite"
            raise InvalidRequest(msg)
        self._raise_floor()
        request = Request(
            request_id=request_id,
            number=next(self._numbers),
            weight=weight,
            came_at=now,
            known_tokens=prompt_tokens,
            virtual_tokens=0.0 if self._settings.order is Order.LEAST_SERVED else self._floor,
        )
        self._requests[request_id] = request
        self._waiting.add(request)

    def remove(self, request_id: str) -> None:
        """It has ended, or was cancelled: its blocks are free. Unknown ones are ignored."""
        self._raise_floor()
        request = self._requests.pop(request_id, None)
        if request is not None:
            if request.generated_tokens:
                self._turnover.ended(request.generated_tokens)
            self._residents.pop(request_id, None)
            self._waiting.remove(request)
        if not self._requests:  # the time until somebody comes is no iteration's
            self._slices.computes = self._is_full = False

    def plan(self, now: float, room: Room, *, swap: Swap | None = None) -> Plan:
        """What to do in the iteration that begins *now*; without *swap* slices have one length."""
        self._slices.see(now, swap, residents=len(self._residents))
        self._turnover.see(now, is_full=self._is_full)
        packing = Packing(
            self._residents.values(),
            self._waiting,
            room=room,
            settings=self._settings,
            slices=self._slices,
        )
        self._cache_blocks = packing.total_blocks
        run = shares(packing.running, room.tokens, newcomer_share=self._settings.newcomer_share)
        self._is_full = 0 < len(run) < len(self._requests)
        self._slices.computes = bool(run)
        return Plan(
            run=run,
            preempt=tuple(one.request_id for one in packing.preempted),
            resume=tuple(
                share.request_id for share in run if self._requests[share.request_id].is_parked
            ),
            soon=tuple(one.request_id for one in packing.next_parked()),
            too_large=tuple(one.request_id for one in packing.too_large),
        )

    def ran(self, request_id: str, tokens: int) -> None:
        """It computed so many tokens in the iteration that was planned last, and is resident.

        Raises:
            InvalidRequest: it is unknown, or more than it lacks.
        """
        request = self._known(request_id)
        if not 1 <= tokens <= request.missing_tokens:
            msg = f"{request_id!r} computed {tokens} tokens, but lacks {request.missing_tokens}"
            raise InvalidRequest(msg)
        self.resides(request_id)
        answers = request.compute(tokens, prompt_token_cost=self._settings.prompt_token_cost)
        if self._is_full:
            self._turnover.generated(answers)

    def resides(self, request_id: str) -> None:
        """It has blocks, be it that the engine gave it some by itself: to a fork, for a prefix.

        Raises:
            InvalidRequest: it is unknown.
        """
        request = self._known(request_id)
        if not request.is_resident:
            self._waiting.remove(request)
            self._residents[request_id] = request
            request.is_resident = True

    def preempted(self, request_id: str, *, kept_tokens: int | None = None) -> None:
        """Its blocks were given up; of its tokens *kept_tokens* are parked (all, unless said).

        Raises:
            InvalidRequest: it is unknown, or more than it had.
        """
        request = self._known(request_id)
        if kept_tokens is not None:
            self.holds(request_id, kv_tokens=kept_tokens)
        if self._residents.pop(request_id, None):
            request.is_resident = False
            request.slice_left = request.sure_left = 0
            self._waiting.add(request)

    def holds(self, request_id: str, *, kv_tokens: int) -> None:
        """So many of its tokens have keys and values: a prefix was found, or some were lost.

        Raises:
            InvalidRequest: it is unknown, or has no so many tokens, one of which is to compute.
        """
        request = self._known(request_id)
        if not 0 <= kv_tokens < request.known_tokens:
            msg = f"{request_id!r} holds {kv_tokens} tokens, but knows {request.known_tokens}"
            raise InvalidRequest(msg)
        if request.is_resident or kv_tokens == request.kv_tokens:
            request.kv_tokens = kv_tokens
            return
        self._waiting.remove(request)
        request.kv_tokens = kv_tokens
        self._waiting.add(request)

    def admit(self, now: float, *, prompt_tokens: int) -> Admission:
        """Whether to take one more: not past what the engine does in time.

        While nobody waits there is room, however long replies take. `too_large`: there never is.
        """
        if self._cache_blocks is not None and (
            self._settings.blocks(prompt_tokens) > self._cache_blocks
        ):
            return Admission(accepted=False, reason="too_large")
        self._turnover.see(now, is_full=self._is_full)
        late = self._turnover.seconds_for(len(self._requests) + 1)
        late -= self._settings.patience_seconds
        if late <= 0 or not self._is_full:
            return Admission(accepted=True)
        return Admission(
            accepted=False, retry_after_seconds=max(SOONEST_RETRY_SECONDS, late), reason="busy"
        )

    def _known(self, request_id: str) -> Request:
        try:
            return self._requests[request_id]
        except KeyError:
            msg = f"no request {request_id!r} was added"
            raise InvalidRequest(msg) from None

    def _raise_floor(self) -> None:
        if self._requests:
            least = min(one.virtual_tokens for one in self._requests.values())
            self._floor = max(self._floor, least)
