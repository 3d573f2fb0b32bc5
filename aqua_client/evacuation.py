"""Empties a slab that has to go: moves `store` data elsewhere, drops `cache` data.

Pieces are copied some together, a chunk at most. While one is copied it stays readable where it was;
the swap is one step under the lock.
Where to: another slab on another GPU if there is room at once, else the host, whose room was
reserved with the grant. Does not cover when a slab is unmapped and acknowledged: that is the
worker's.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from itertools import islice

from aqua_client import moving
from aqua_client.borrowing import Borrowing
from aqua_client.copying import CHUNK_BYTES
from aqua_client.evacuation_buffer import EvacuationBuffer
from aqua_client.fallback import Shortage
from aqua_client.held_copies import HELD_COPIES
from aqua_client.host_tier import piece_sizes
from aqua_client.pace import MOST_PIECES, Pace
from aqua_client.records import SafetyClass
from aqua_client.slabs import Place, Slab, places_in_host
from aqua_client.streams import Streams
from aqua_client.tiers import Tiers

# A revoke's standard deadline is 2 s, and what is copied meanwhile has to fit in too.
ASKING_SECONDS = 0.5

# Who was refused is refused again a moment later, and each asking holds up all that is still to be
# moved: beside an interpreter that computes in Python for a tenth of a second and more.
REFUSED_SECONDS = 2.0

# Between so many the lock is free for an instant.
SWAPPED_TOGETHER = 16

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
        self._pace = Pace()
        self._ask_again_at = -math.inf

    def empty(self, slab: Slab) -> None:
        """Move or drop all that can be now. What is being written or read keeps the slab in use.

        Raises:
            MemoryError: there is none to move to; nothing is lost, and it may be tried again.
        """
        most_pieces = MOST_PIECES
        with HELD_COPIES.beside_moves():
            while places := self._next(slab, most_pieces):
                try:
                    self._move(places, slab)
                except MemoryError:
                    if most_pieces == 1:
                        raise
                    most_pieces = 1  # for one there may be some

    def _next(self, slab: Slab, most_pieces: int) -> list[Place]:
        """Pieces to move, pinned. `cache` is dropped on the way."""
        found: list[Place] = []
        found_bytes = 0
        with self._tiers.lock:
            if slab.safety is SafetyClass.CACHE:
                self._drop(list(slab.movable()), slab.fence_reason)
            most_pieces = min(most_pieces, self._pace.pieces(self._tiers.fetched_at))
            for place in slab.movable():
                found_bytes += place.nbytes
                if found and (found_bytes > CHUNK_BYTES or len(found) == most_pieces):
                    break
                place.pins += 1
                found.append(place)
        return found

    def _drop(self, places: Sequence[Place], reason: str) -> None:
        for place in places:
            if not place.is_retired:  # dropping one piece of a tensor retires its others, here too
                self._tiers.lose(place.stored, reason)

    def _move(self, places: Sequence[Place], slab: Slab) -> None:
        targets: list[list[Place]] = []
        try:
            targets.extend(self._on_peers(places, slab))  # also some of them
            self._add_host(places, targets, slab)
            with self._pace.measured():
                moving.copy_pieces(self._streams, list(zip(places, targets, strict=True)))
        except BaseException:
            with self._tiers.lock:
                self._tiers.discard([one for there in targets for one in there])
                self._tiers.unpin(places)
            raise
        for begin in range(0, len(places), SWAPPED_TOGETHER):
            with self._tiers.lock:
                for at in range(begin, min(begin + SWAPPED_TOGETHER, len(places))):
                    self._tiers.replace(places[at], targets[at], slab.fence_reason)
                    self._tiers.counters.evacuated_bytes += places[at].nbytes

    def _on_peers(self, places: Sequence[Place], slab: Slab) -> Iterator[list[Place]]:
        """Of each where it goes on another GPU, if that has room at once."""
        refused_bytes = math.inf  # nor is there any for what is as long
        for place in places:
            now = time.monotonic()
            there: list[Place] = []
            if place.nbytes < refused_bytes and place.is_settled(now):
                there = self._on_peer(place, slab, now)
                refused_bytes = refused_bytes if there else place.nbytes
            yield there

    def _on_peer(self, place: Place, slab: Slab, now: float) -> list[Place]:
        # What is held has room perhaps, also for who asks nobody.
        seconds = ASKING_SECONDS if now >= self._ask_again_at else 0.0
        try:
            found = self._borrowing.put(
                place.nbytes, place.stored, end=now + seconds, avoid_gpu=slab.lender_gpu
            )
        except Shortage as shortage:
            logger.debug("moving to host memory: %s", shortage.reason)
        else:
            if found.nbytes == place.nbytes:
                return [found]
            with self._tiers.lock:  # a smaller slab came: pieces are moved whole
                self._tiers.discard([found])
        if seconds:
            self._ask_again_at = time.monotonic() + REFUSED_SECONDS
        return []

    def _add_host(
        self, places: Sequence[Place], targets: Sequence[list[Place]], slab: Slab
    ) -> None:
        """Places in the host for those that have none."""
        lacking = [at for at, there in enumerate(targets) if not there]
        sizes = [piece_sizes(places[at].nbytes) for at in lacking]
        memories = iter(self._buffer.memories([size for each in sizes for size in each]))
        with self._tiers.lock:
            for at, each in zip(lacking, sizes, strict=True):
                place = places[at]
                self._tiers.host.claim(place.nbytes)
                self._tiers.host.cover(slab.lease_id, place.nbytes)
                found = places_in_host(islice(memories, len(each)), place.stored)
                targets[at].extend(found)
