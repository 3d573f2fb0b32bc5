"""Empties a slab that has to go: moves `store` data elsewhere, drops `cache` data.

While a piece is copied it stays readable where it was; the swap is one step under the lock.
Where to: another slab on another GPU if there is room at once, else the host, whose room was
reserved with the grant. Does not cover when a slab is unmapped and acknowledged: that is the
worker's.
"""

from __future__ import annotations

import logging
import time

from aqua_client import moving
from aqua_client.borrowing import Borrowing
from aqua_client.evacuation_buffer import EvacuationBuffer
from aqua_client.fallback import Shortage
from aqua_client.host_tier import piece_sizes
from aqua_client.records import SafetyClass
from aqua_client.slabs import Place, Slab
from aqua_client.streams import Streams
from aqua_client.tiers import Tiers

# A revoke's standard deadline is 2 s, and what is copied meanwhile has to fit in too.
ASKING_SECONDS = 0.5

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
                targets = self._target(place, slab)
            except BaseException:
                with self._tiers.lock:
                    self._tiers.unpin([place])
                raise
            self._move(place, targets, slab)

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

    def _target(self, place: Place, slab: Slab) -> list[Place]:
        if place.is_settled(time.monotonic()):
            try:
                end = time.monotonic() + ASKING_SECONDS
                found = self._borrowing.put(
                    place.nbytes, place.stored, end=end, avoid_gpu=slab.lender_gpu
                )
            except Shortage as shortage:
                logger.debug("moving to host memory: %s", shortage.reason)
            else:
                if found.nbytes == place.nbytes:
                    return [found]
                with self._tiers.lock:  # a smaller slab came: pieces are moved whole
                    self._tiers.discard([found])
        memories = [self._buffer.memory(size) for size in piece_sizes(place.nbytes)]
        with self._tiers.lock:
            self._tiers.host.claim(place.nbytes)
            self._tiers.host.cover(slab.lease_id, place.nbytes)
            return self._tiers.put_in_host(memories, place.stored)

    def _move(self, place: Place, targets: list[Place], slab: Slab) -> None:
        try:
            moving.copy_piece(self._streams, place, targets)
        except BaseException:
            with self._tiers.lock:
                self._tiers.discard(targets)
                self._tiers.unpin([place])
            raise
        with self._tiers.lock:
            self._tiers.replace(place, targets, slab.fence_reason)
            self._tiers.counters.evacuated_bytes += place.nbytes
