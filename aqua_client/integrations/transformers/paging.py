"""Pages the KV caches of requests that have to give way to leases, and back when they go on.

It stands where the engine has its own offloading: the engine (or the fair scheduler) says who gives
way, and finds a request restored when it schedules it again. Full blocks are written through by a
thread while the model computes, so that who gives way copies only its tail. A request for which
there is no room anywhere, or whose bytes were lost, is computed again.

All but the writing happens in the engine's thread, between two steps of the model.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from transformers.generation.continuous_batching.offloading_manager import OffloadingManager

from aqua_client.errors import AquaError
from aqua_client.integrations.transformers import engine
from aqua_client.integrations.transformers.ahead import Ahead
from aqua_client.integrations.transformers.copies import Blocks, Copies, GroupStore, Pools
from aqua_client.integrations.transformers.telling import Telling
from aqua_client.scheduling import Swap
from aqua_client.torch_streams import new_stream

if TYPE_CHECKING:
    from transformers.generation.continuous_batching.continuous_api import ContinuousBatchProcessor
    from transformers.generation.continuous_batching.requests import (
        FutureRequestState,
        RequestState,
    )


@dataclass(slots=True)
class Counts:
    """What was done since the start."""

    parked: int = 0  # times that a request gave way and was kept
    restored: int = 0
    brought_ahead: int = 0  # of them, those whose bytes were near when their turn came
    recomputed: int = 0  # times that it was not, or its bytes were lost
    written_ahead_bytes: int = 0
    tail_bytes: int = 0  # copied while requests gave way
    restored_bytes: int = 0
    parking_seconds: float = 0.0  # of the engine's thread
    restoring_seconds: float = 0.0


class Paging(OffloadingManager):
    """Made by `attach`."""

    def __init__(
        self,
        processor: ContinuousBatchProcessor,
        pools: Pools | None,  # None: nothing is parked
        *,
        write_through: bool,
        ahead_bytes: int,
    ) -> None:
        stock = processor.offloading_manager
        self.cache = stock.cache
        self.scheduler = stock.scheduler
        self._compute_stream = processor.inputs_and_outputs.compute_stream
        self._side = (
            None if self._compute_stream is None else new_stream(self._compute_stream.device)
        )
        self._stores: tuple[GroupStore, ...] = ()
        if pools is not None:
            self._stores = tuple(GroupStore(one, pools) for one in engine.kv_groups(stock.cache))
        self._kept: dict[str, tuple[Copies, ...]] = {}
        self._parked: set[str] = set()
        self._just_back: set[str] = set()
        self._looked = 0
        self.soon: Sequence[str] = ()  # who will come back next, as far as the scheduler knows
        self._counts = Counts()
        self._telling = Telling()
        self._writer = (
            ThreadPoolExecutor(1, thread_name_prefix="aqua-write-through")
            if write_through
            else None
        )
        self._ahead = (
            Ahead(most_bytes=ahead_bytes, stream=self._compute_stream) if ahead_bytes else None
        )

    def stats(self) -> dict[str, float]:
        """What was done since the start, and how many requests are parked now."""
        return {**asdict(self._counts), "parked_now": len(self._parked)}

    @property
    def parked(self) -> frozenset[str]:
        """Whose cache is not in the engine now."""
        return frozenset(self._parked)

    @property
    def block_bytes(self) -> int:
        """Of one block of the KV cache, in all layers."""
        return sum(store.block_nbytes for store in self._stores)

    def swap(self) -> Swap | None:
        """What giving way and coming back cost, once both have been measured.

        Not where copies are only enqueued: how long that takes says nothing.
        """
        counts = self._counts
        if self._compute_stream is not None or not (counts.tail_bytes and counts.restored_bytes):
            return None
        return Swap(
            bytes_per_token=self.block_bytes // self._stores[0].group.tokens_per_block,
            store_bytes_per_second=counts.tail_bytes / counts.parking_seconds,
            fetch_bytes_per_second=counts.restored_bytes / counts.restoring_seconds,
            writes_through=self._writer is not None,
        )

    def park(self, victims: Sequence[RequestState]) -> None:
        """Take active requests out of the cache; they wait, and go on from where they are."""
        kept = self._offload_to_cpu(victims)
        for state in victims:
            if state.request_id in kept:
                engine.make_pending(state)
                self._requeue(state, state)
            else:
                self._requeue(state, engine.make_new(state))

    def requeue_lost(self) -> None:
        """Have waiting requests whose bytes are gone computed again: one is looked at in a step.

        All of them would cost each step as much as a hundred requests do; whose loss is not seen by
        then is met when it comes back.
        """
        if not self._parked:
            return
        self._looked += 1
        request_id = list(self._parked)[self._looked % len(self._parked)]
        state = self.scheduler.waiting_requests.get(request_id)
        if state is not None and any(copies.is_lost for copies in self._kept[request_id]):
            self._counts.recomputed += 1
            self.free_request_cpu_cache(state)
            self.scheduler.waiting_requests[request_id] = engine.make_new(state)

    def bring_back(self, batch: list[FutureRequestState]) -> list[FutureRequestState]:
        """Restore who was parked; whose bytes are gone leaves *batch* and is computed again."""
        lost: list[FutureRequestState] = []
        self._just_back.clear()
        for scheduled in batch:
            if scheduled.state.request_id in self._parked:
                try:
                    self._restore(scheduled)
                except AquaError as error:
                    self._telling.computed_again(scheduled.state.request_id, error)
                    lost.append(scheduled)
        for scheduled in lost:
            batch.remove(scheduled)
            self._give_up(scheduled.state)
        self._bring_ahead()
        return lost

    def forget(self, request_id: str) -> None:
        """The request is over, or computed again; not so where it is parked."""
        if request_id not in self._parked:
            if self._ahead is not None:
                self._ahead.forget(request_id)
            for copies in self._kept.pop(request_id, ()):
                copies.release()

    def finish_writing(self) -> None:
        """Wait until nothing is being written or brought ahead."""
        if self._writer is not None:
            self._writer.submit(lambda: None).result()
        if self._ahead is not None:
            self._ahead.finish()

    def close(self) -> None:
        """End the threads, and give everything back."""
        if self._writer is not None:
            self._writer.shutdown(cancel_futures=True)
        self.reset()
        if self._ahead is not None:
            self._ahead.close()

    # What the engine calls; the names are its own.

    def _offload_to_cpu(
        self, victims: Sequence[RequestState], victim_block_tables: engine.Tables | None = None
    ) -> set[str]:
        """Park requests; those for which there was no room are not among the ids returned."""
        parked = {
            state.request_id
            for state in victims
            if self._park(state, (victim_block_tables or {}).get(state.request_id))
        }
        self._counts.parked += len(parked)
        self._counts.recomputed += len(victims) - len(parked)
        return parked

    def restore_scheduled_requests(self, requests_in_batch: list[FutureRequestState]) -> None:
        """Write ahead what has become full; who was parked is back by now.

        Not of whoever has just come back: after this step the engine looks for its blocks among
        those that others have, and gives those found twice away, while they would be read.
        """
        for scheduled in requests_in_batch:
            if self._writer is not None and scheduled.state.request_id not in self._just_back:
                self._write_ahead(scheduled.state, self._writer)

    def free_request_cpu_cache(self, state: RequestState, keep_unsorted: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - the engine's
        """The request is cancelled."""
        self._parked.discard(state.request_id)
        state.is_cpu_offloaded = False
        self.forget(state.request_id)

    def free_all_waiting_cpu_caches(self) -> None:
        """Everything that waits has failed."""
        for state in self.scheduler.waiting_requests.values():
            self.free_request_cpu_cache(state)

    def reset(self) -> None:
        """Begin anew."""
        self._parked.clear()
        for request_id in list(self._kept):
            self.forget(request_id)

    def _park(self, state: RequestState, tables: Mapping[str, Sequence[int]] | None) -> bool:
        if not self._stores:
            return False
        request_id = state.request_id
        nbytes, began = 0, time.perf_counter()
        try:
            with torch.cuda.stream(self._compute_stream):
                for store, copies in self._copies_of(request_id):
                    group = store.group
                    table = (tables or {}).get(group.name, group.table_of(request_id))
                    nbytes += copies.park(table, state.position_offset)
        except AquaError as error:
            self._telling.computed_again(request_id, error)
            self.forget(request_id)
            return False
        self._counts.tail_bytes += nbytes
        self._counts.parking_seconds += time.perf_counter() - began
        self._parked.add(request_id)
        state.is_cpu_offloaded = True  # the engine asks for it
        return True

    def _restore(self, scheduled: FutureRequestState) -> None:
        request_id = scheduled.state.request_id
        began = time.perf_counter()
        with torch.cuda.stream(self._compute_stream):
            near = None if self._ahead is None else self._ahead.take(request_id)
            self._counts.brought_ahead += near is not None
            for index, (store, copies) in enumerate(self._copies_of(request_id)):
                self._counts.restored_bytes += copies.restore(
                    store.group.table_of(request_id), near[index] if near else None
                )
        self._parked.discard(request_id)
        self._just_back.add(request_id)
        self._counts.restored += 1
        self._counts.restoring_seconds += time.perf_counter() - began
        engine.note_restored(self.cache, scheduled)

    def _bring_ahead(self) -> None:
        """Of those who come next, once those of this batch have what was brought of them."""
        if self._ahead is not None and self.soon:
            self._ahead.want(
                [one for one in self.soon if one in self._parked],
                lambda one: [copies.parked() for copies in self._kept[one]],
            )

    def _write_ahead(self, state: RequestState, writer: ThreadPoolExecutor) -> None:
        for store, copies in self._copies_of(state.request_id):
            full = store.group.full_blocks(state.position_offset)
            table = store.group.table_of(state.request_id)[copies.full_count : full]
            if table:
                stream = self._compute_stream
                computed = None if stream is None else stream.record_event()
                copies.write(writer.submit(self._write, store, table, computed), len(table))
                self._counts.written_ahead_bytes += len(table) * store.block_nbytes

    def _write(
        self, store: GroupStore, block_ids: Sequence[int], computed: torch.cuda.Event | None
    ) -> Blocks:
        """In the writer's thread. At its end the blocks may be used for something else."""
        if self._side is None or computed is None:
            return store.store(block_ids)
        with torch.cuda.stream(self._side):
            self._side.wait_event(computed)
            blocks = store.store(block_ids)
            self._side.synchronize()
        return blocks

    def _copies_of(self, request_id: str) -> Iterable[tuple[GroupStore, Copies]]:
        if request_id not in self._kept:
            self._kept[request_id] = tuple(Copies(store) for store in self._stores)
        return zip(self._stores, self._kept[request_id], strict=True)

    def _give_up(self, state: RequestState) -> None:
        self._counts.recomputed += 1
        if state in self.scheduler._requests_to_fork:  # noqa: SLF001 - it is not computed now
            self.scheduler._requests_to_fork.remove(state)  # noqa: SLF001
        again = engine.make_new(state)
        self.free_request_cpu_cache(state)
        self._requeue(state, again)

    def _requeue(self, state: RequestState, again: RequestState) -> None:
        self.scheduler.finish_request(state.request_id)
        self.scheduler.add_waiting_request(again)
