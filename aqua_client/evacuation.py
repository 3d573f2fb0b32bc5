"""Empties a slab that has to go: moves `store` data elsewhere, drops `cache` data.

While a piece is copied it stays readable where it was; the swap is one step under the lock.
Where to: another slab on another GPU if there is room at once, else the host, whose room was
reserved with the grant. Does not cover when a slab is unmapped and acknowledged: that is the
worker's.
"""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, nullcontext

from aqua_client import copying
from aqua_client.borrowing import Borrowing
from aqua_client.evacuation_buffer import EvacuationBuffer
from aqua_client.fallback import Shortage
from aqua_client.records import SafetyClass
from aqua_client.slabs import Place, Slab
from aqua_client.streams import Streams
from aqua_client.tiers import Tiers

# A revoke's standard deadline is 2 s, and what is copied meanwhile has to fit in too.
ASKING_SECONDS = 0.5

# What was moved so lately goes to the host, where nobody asks for it again.
SETTLED_SECONDS = 10.0

logger = logging.getLogger("aqua")


class Evacuation:
    """Used by the worker's thread only."""

    def __init__(
        self,
        tiers: Tiers,
        borrowing: Borrowing,
        streams: Streams | None,
        buffer: EvacuationBuffer,
    ) -> None:
        self._tiers = tiers
        self._streams = streams
        self._borrowing = borrowing
        self._buffer = buffer

    def empty(self, slab: Slab) -> None:
        """Move or drop all that can be now. What is being written or read keeps the slab in use.

        Raises:
            MemoryError: there is none to move to; nothing is lost, and it may be tried again.
        """
        while (place := self._next(slab)) is not None:
            try:
                target = self._target(place, slab)
            except BaseException:
                with self._tiers.lock:
                    self._tiers.unpin([place])
                raise
            self._move(place, target, slab)

    def _next(self, slab: Slab) -> Place | None:
        """A piece to move, pinned. `cache` is dropped on the way."""
        with self._tiers.lock:
            for place in slab.movable():
                if slab.safety is SafetyClass.CACHE:
                    # Dropping one piece of a tensor retires its others, in this slab too.
                    if not place.is_retired:
                        self._tiers.lose(place.stored, slab.fence_reason)
                    continue
                place.pins += 1
                return place
        return None

    def _target(self, place: Place, slab: Slab) -> Place:
        stored = place.stored
        if time.monotonic() - place.moved_at > SETTLED_SECONDS:
            try:
                end = time.monotonic() + ASKING_SECONDS
                found = self._borrowing.put(
                    place.nbytes, stored, end=end, avoid_gpu=slab.lender_gpu
                )
            except Shortage as shortage:
                logger.debug("moving to host memory: %s", shortage.reason)
            else:
                if found.nbytes == place.nbytes:
                    return found
                with self._tiers.lock:  # a smaller slab came: pieces are moved whole
                    self._tiers.discard([found])
        memory = self._buffer.memory(place.nbytes)
        with self._tiers.lock:
            self._tiers.host.claim(place.nbytes)
            self._tiers.host.cover(slab.lease_id, place.nbytes)
            return self._tiers.put_in_host(memory, place.nbytes, stored)

    def _move(self, place: Place, target: Place, slab: Slab) -> None:
        try:
            with self._apart(place, target):
                copying.copy_span(place, target)
        except BaseException:
            with self._tiers.lock:
                self._tiers.discard([target])
                self._tiers.unpin([place])
            raise
        with self._tiers.lock:
            self._tiers.replace(place, target, slab.fence_reason)
            self._tiers.counters.evacuated_bytes += place.nbytes

    def _apart(self, place: Place, target: Place) -> AbstractContextManager[None]:
        """On a stream of the library's own, and all over at the end; on shared memory it is so."""
        for memory in (place.memory, target.memory):
            if self._streams is not None and memory.ordinal is not None:
                return self._streams.on_own_stream(memory.ordinal)
        return nullcontext()
