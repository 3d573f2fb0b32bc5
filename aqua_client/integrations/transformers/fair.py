"""Fair time slices as a scheduler of the engine's: `scheduler_type="aqua_fair"`.

Who computes, who gives way and who comes back is the policy's, `aqua_client.scheduling`; here the
engine's requests are told to it and its plan is carried out. The stock schedulers evict only when
the cache is full, newest first; this one has whoever waits come in at the end of a slice.

The engine gives requests caches by itself too: a fork has its parent's blocks, a shared prefix is
found while a batch is made. So before each plan the policy is told what every request has.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from transformers.generation.continuous_batching.requests import RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, Scheduler

from aqua_client.errors import InsufficientMemory, InvalidRequest
from aqua_client.integrations.transformers import engine
from aqua_client.integrations.transformers.paging import Paging
from aqua_client.scheduling import Admission, FairScheduler, FairSettings, Room
from aqua_client.scheduling.plans import MANY

if TYPE_CHECKING:
    from transformers.generation.continuous_batching.cache import PagedAttentionCache

NAME = "aqua_fair"
Fail = Callable[[Exception, RequestState], None]


class FairBatches(Scheduler):
    """Made by the engine; `attach` gives it its paging."""

    def __init__(
        self, cache: PagedAttentionCache, safety_margin: float | None, max_requests_per_batch: int
    ) -> None:
        group, *others = engine.kv_groups(cache)
        if others or not group.is_appended:
            raise InvalidRequest(
                f"scheduler_type={NAME!r} is for models whose layers all attend to everything: "
                "this one has layers with a sliding window, use 'fifo'"
            )
        self._group = group
        self._settings = FairSettings(block_tokens=group.tokens_per_block)
        self._paging: Paging | None = None
        self._fail: Fail | None = None
        self._lock = threading.Lock()  # of the policy: a server asks it too
        self._shares: dict[str, int] = {}  # tokens that each may compute in the batch being made
        super().__init__(cache, safety_margin or 0.0, max_requests_per_batch)

    def reset(self) -> None:
        """Begin anew."""
        super().reset()
        self._policy = FairScheduler(self._settings)

    def use(self, paging: Paging, fail: Fail, settings: FairSettings | None) -> None:
        """How requests give way, and how one is ended that can't go on; `attach` says it."""
        self._paging, self._fail = paging, fail
        if settings is not None:
            self._settings = replace(settings, block_tokens=self._group.tokens_per_block)
            self._policy = FairScheduler(self._settings)

    def admit(self, *, prompt_tokens: int) -> Admission:
        """Whether one more request should be taken; any thread may ask."""
        with self._lock:
            return self._policy.admit(time.monotonic(), prompt_tokens=prompt_tokens)

    def schedule_batch(self, token_budget: int, cache_budget: int) -> engine.Scheduled:
        """The next batch, after those have given way whose turn is over."""
        with self._lock:
            candidates = self._planned(token_budget, cache_budget)
            removed: set[str] = set()
            while True:
                engine.make_room(self.cache, self._lacking(candidates, token_budget))
                batch, has_failed, is_fast, tokens, kv_tokens = self._process_candidates(
                    candidates, token_budget, cache_budget, removed
                )
                if batch or not has_failed:
                    break
                candidates = self._fewer(candidates)
            self._cleanup_waiting_queue(removed)
            for one in batch:
                self._policy.holds(one.state.request_id, kv_tokens=one.state.position_offset)
                if one.query_length:
                    self._policy.ran(one.state.request_id, one.query_length)
            return batch, is_fast, tokens, kv_tokens

    def _planned(self, token_budget: int, cache_budget: int) -> list[RequestState]:
        """Carry out the plan as far as it is before the batch; who is to be in it, in order."""
        if self._paging is None:
            raise InvalidRequest(f"scheduler_type={NAME!r} needs attach(manager) before start()")
        now = time.monotonic()
        self._tell(now)
        room = Room(
            tokens=token_budget,
            free_blocks=engine.free_blocks(self.cache),
            requests=self.max_requests_per_batch,
            kv_tokens=MANY if self._reads_by_tables() else cache_budget,
        )
        plan = self._policy.plan(now, room, swap=self._paging.swap())
        for request_id in plan.too_large:
            if _known_tokens(self._state(request_id)) > self._capacity_tokens:
                self._end(self._state(request_id))
        left = self._policy.requests  # of which those just ended are none
        self._park([self._state(one) for one in plan.preempt if one in left])
        self._paging.soon = plan.soon
        self._shares = {one.request_id: one.tokens for one in plan.run}
        return [self._state(one.request_id) for one in plan.run if one.request_id in left]

    def _reads_by_tables(self) -> bool:
        """Whoever is in the batch: all decode, and the engine reads what decodes block by block.

        Any other batch it reads through one index of `cache_budget` tokens, and leaves out whoever
        has no place in it: those with a prompt, who stand behind all that decode.
        """
        most = engine.table_tokens(self.cache)
        return all(
            one.kv_tokens < most and not one.is_prefilling for one in self._policy.requests.values()
        )

    # The engine gives each of a batch all that is left of the tokens; these keep it to its share.

    def _infer_request_tokens(
        self, state: RequestState, request_ids_to_remove_from_waiting: set[str]
    ) -> list[int]:
        tokens = super()._infer_request_tokens(state, request_ids_to_remove_from_waiting)
        return tokens[: self._shares[state.request_id]]

    def _schedule_request(
        self,
        state: RequestState,
        request_tokens: list[int],
        token_budget: int,
        request_ids_to_remove_from_waiting: set[str],
    ) -> None:
        is_decoding = state.status == RequestStatus.DECODING
        whole = state.tokens_to_process if is_decoding else state.remaining_prefill_tokens
        budget = min(token_budget, len(request_tokens))
        super()._schedule_request(state, whole, budget, request_ids_to_remove_from_waiting)

    def _tell(self, now: float) -> None:
        """Have the policy know what the engine has."""
        policy, states = self._policy, {**self.waiting_requests, **self.active_requests}
        for request_id in [one for one in policy.requests if one not in states]:
            policy.remove(request_id)
        for request_id, state in states.items():
            known = policy.requests.get(request_id)
            if known is not None and known.known_tokens != _known_tokens(state):
                policy.remove(request_id)  # what was planned was not computed: it begins anew
            if request_id not in policy.requests:
                policy.add(request_id, prompt_tokens=_known_tokens(state), now=now)
            is_active = request_id in self.active_requests
            kept = state.position_offset if is_active or state.is_cpu_offloaded else 0
            if policy.requests[request_id].is_resident and not is_active:
                policy.preempted(request_id)
            policy.holds(request_id, kv_tokens=kept)
            if is_active:
                policy.resides(request_id)

    def _park(self, states: Sequence[RequestState]) -> None:
        if states and self._paging is not None:
            self._paging.park(states)
        for request_id in [one.request_id for one in states]:
            kept = self.waiting_requests[request_id]
            self._policy.preempted(
                request_id, kept_tokens=kept.position_offset if kept.is_cpu_offloaded else 0
            )

    def _fewer(self, candidates: list[RequestState]) -> list[RequestState]:
        """Not even one fits, for blocks that the policy does not know of: have another give way."""
        first = candidates[0].request_id
        others = [state for name, state in self.active_requests.items() if name != first]
        if others:
            self._park(others[-1:])
            return [one for one in candidates if one.request_id != others[-1].request_id]
        self._end(candidates[0])
        return candidates[1:]

    def _end(self, state: RequestState) -> None:
        """It needs more than there is, and would wait for ever."""
        if self._fail is not None:
            known = _known_tokens(state)
            message = f"{known} tokens do not fit the KV cache, which holds {self._capacity_tokens}"
            self._fail(InsufficientMemory(message), state)
        self.set_request_cancellation(state.request_id)
        for cancelled in self.clear_cancelled_requests():
            if self._paging is not None:
                self._paging.free_request_cpu_cache(cancelled)
        self._policy.remove(state.request_id)

    def _lacking(self, states: Iterable[RequestState], token_budget: int) -> int:
        """Blocks that a batch of these needs beside those that they have."""
        needed = 0
        for state in states:
            more = min(max(1, len(state.remaining_prefill_tokens)), token_budget)
            blocks = self._group.used_blocks(state.position_offset + more, ())
            needed += max(0, blocks - len(self._group.table_of(state.request_id)))
        return needed

    def _state(self, request_id: str) -> RequestState:
        return self.active_requests.get(request_id) or self.waiting_requests[request_id]

    @property
    def _capacity_tokens(self) -> int:
        return engine.capacity_blocks(self.cache) * self._group.tokens_per_block


def _known_tokens(state: RequestState) -> int:
    return len(state.initial_tokens) + len(state.generated_tokens)


SCHEDULER_MAPPING[NAME] = FairBatches
