"""An engine as a producer: while nobody asks it anything, its KV cache's memory is lent.

    engine = aqua_client.producer("cuda:0", informer=aqua_client.LlmInformer(), must_attach=False)
    lending = Lending(manager, paging, engine)   # after attach, before manager.start()

It tells the informer how the engine is doing (who waits, how much of the cache is used), four times a
second. The engine's cache is one allocation, and what is lent has to be free to the driver: so once
the informer has offered something, and no request is there, the cache's memory is let go of. The
next request takes it back first, and is computed when it is there. Prefixes that were kept are gone
then, and what is parked is not: it lies in others' memory.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from aqua_client.errors import AquaError
from aqua_client.informing import Decision, Figures, LlmFigures
from aqua_client.integrations.transformers import engine
from aqua_client.integrations.transformers.paging import Paging
from aqua_client.records import ReclaimResult

if TYPE_CHECKING:
    from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager

logger = logging.getLogger("aqua")

REPORT_SECONDS = 0.25
MOST_COUNTED = 4096
RATE_SECONDS = 10.0  # that requests a second are counted over


class Lender(Protocol):
    """A `Producer` with an informer."""

    def report(self, figures: Figures, /) -> Decision:
        """Hear how the engine is doing."""

    def reclaim(self, nbytes: int, /) -> ReclaimResult:
        """Take memory back, and wait for it."""

    def stats(self) -> dict[str, object]:
        """`wanted_bytes`: what is to be lent."""


class Lending:
    """Of one engine, from now until `close`; the lender is closed by whoever made it."""

    def __init__(
        self,
        manager: ContinuousBatchingManager,
        paging: Paging,
        lender: Lender,
        *,
        report_seconds: float = REPORT_SECONDS,
    ) -> None:
        self._manager = manager
        self._paging = paging
        self._lender = lender
        self._cache = paging.cache
        self._scheduler = paging.scheduler
        self._storages = engine.kv_storages(self._cache)
        self._sizes = [one.nbytes() for one in self._storages]
        self._turn = threading.Lock()  # between two batches, whether there is a cache
        self._is_asleep = False
        self._came: deque[float] = deque(maxlen=MOST_COUNTED)
        # The engine has no other places where a request, or the next batch, can be noticed.
        self._schedule, self._add = self._scheduler.schedule_batch, manager.add_request
        self._scheduler.schedule_batch = self._when_awake  # type: ignore[method-assign]
        manager.add_request = self._counted  # type: ignore[method-assign]
        self._is_closed = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(report_seconds,), name="aqua-lending", daemon=True
        )
        self._thread.start()

    @property
    def is_asleep(self) -> bool:
        """Whether the cache's memory is let go of."""
        return self._is_asleep

    def close(self) -> None:
        """Report no more. Idempotent; a cache that is let go of comes back with the next request."""
        self._is_closed.set()
        self._thread.join()

    def _run(self, report_seconds: float) -> None:
        while not self._is_closed.wait(report_seconds):
            try:
                self._lender.report(self._figures())
                if self._lender.stats().get("wanted_bytes"):
                    self._sleep()
            except Exception:  # an engine goes on, whatever becomes of what it lends
                logger.exception("the engine could not be reported")

    def _figures(self) -> LlmFigures:
        used, total = engine.kv_bytes(self._cache)
        waiting = len(self._scheduler.waiting_requests) + self._manager.input_queue.qsize()
        return LlmFigures(
            pending_requests=waiting,
            kv_used_bytes=used,
            kv_total_bytes=total,
            requests_per_second=self._requests_per_second(),
        )

    def _requests_per_second(self) -> float:
        since = time.monotonic() - RATE_SECONDS
        while self._came and self._came[0] < since:
            self._came.popleft()
        return len(self._came) / RATE_SECONDS

    def _sleep(self) -> None:
        with self._turn:
            if self._is_asleep or self._is_busy():
                return
            self._paging.finish_writing()
            engine.forget_prefixes(self._cache)
            self._resize([0] * len(self._sizes))
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            self._is_asleep = True
            logger.info("idle: %d bytes of KV cache are let go of", sum(self._sizes))

    def _is_busy(self) -> bool:
        has_requests = self._scheduler.has_pending_requests()
        return has_requests or not self._manager.input_queue.empty()

    def _resize(self, sizes: Sequence[int]) -> None:
        """The views of it that the engine has made stay what they are."""
        for storage, nbytes in zip(self._storages, sizes, strict=True):
            if storage.resizable():  # not once numpy has seen it, which no GPU's memory is
                storage.resize_(nbytes)

    def _counted(self, *request: Any, **settings: Any) -> str | None:  # noqa: ANN401 - the engine's
        self._came.append(time.monotonic())
        return self._add(*request, **settings)

    def _when_awake(self, token_budget: int, cache_budget: int) -> engine.Scheduled:
        """In the engine's thread: no batch without a cache; the engine asks again in a moment."""
        with self._turn:
            if self._is_asleep and not self._wake():
                return [], False, 0, 0
        return self._schedule(token_budget, cache_budget)

    def _wake(self) -> bool:
        """Whether there is a cache again."""
        began = time.monotonic()
        try:
            self._lender.reclaim(sum(self._sizes))
        except AquaError as error:  # whoever it was, the memory may be there
            logger.warning("what was lent could not be taken back: %s", error)
        try:
            self._resize(self._sizes)
        except torch.OutOfMemoryError as error:
            self._resize([0] * len(self._sizes))
            logger.warning("the KV cache has no memory yet: %s", error)
            return False
        engine.zero(self._cache)
        self._is_asleep = False
        logger.info("the KV cache is back after %.3f s", time.monotonic() - began)
        return True
