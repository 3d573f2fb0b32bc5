"""Keeps some host memory touched, so that an evacuation copies at full speed.

How much: two of the largest slabs held, or a tenth of the `store` data in slabs, whichever is
larger, and never more than that data. A revoke takes whole slabs, seldom more than two of one process
at once; of a process that stores hundreds of slabs more are taken together. It lies within the host
room that was reserved with these slabs, so nobody else is promised it, and within this process's
limit; offloads to the host take no page of it. Only the worker fills it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from aqua_client.copying import Memory
from aqua_client.records import SafetyClass
from aqua_client.tiers import Tiers

LEAST_SLABS = 2
SHARE = 10  # of what is stored, one part in so many

# Smaller pieces come from the C library's own heap, whose pages are mostly there.
LEAST_PIECE_BYTES = 64 * 2**10

# With nothing stored it is kept so long: who parks and releases in turns would fill it each time.
IDLE_SECONDS = 3.0


class EvacuationBuffer:
    """The worker's."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers

    def memories(self, sizes: Sequence[int]) -> list[Memory]:
        """Host memory for pieces of these sizes, of the buffer as long as that has some.

        Raises:
            MemoryError: there is none.
        """
        buffer = self._tiers.host.buffer
        with self._tiers.lock:
            found = [buffer.take(size) if size >= LEAST_PIECE_BYTES else None for size in sizes]
        return [
            Memory.of_host(size) if pages is None else Memory.of_pages(pages)
            for size, pages in zip(sizes, found, strict=True)
        ]

    def tend(self) -> None:
        """Fill it up, step by step, until there is something else to do. Or give it back."""
        tiers = self._tiers
        buffer = tiers.host.buffer
        is_filling = False  # once a quarter is missing, all of it is filled up
        while True:
            with tiers.lock:
                if tiers.has_changed:
                    return
                wanted = self._wanted_bytes()
                if not wanted and buffer.nbytes and self._is_idle():
                    buffer.keep(0)
                missing = wanted - buffer.nbytes
                least = LEAST_PIECE_BYTES if is_filling else max(LEAST_PIECE_BYTES, wanted // 4)
                if missing < least:
                    return
                step = buffer.next_step(missing)
                is_filling = True
            if step is None or not step.touch():
                return
            with tiers.lock:
                buffer.touched(step)

    def fit(self) -> None:
        """Under the lock, after a slab has gone: no more than what is reserved with the others."""
        host, reserved = self._tiers.host, 0
        for slab in self._tiers.slabs.values():
            if slab.safety is SafetyClass.STORE:
                reserved += slab.nbytes - host.covered_bytes(slab.lease_id)
        host.buffer.keep(max(0, reserved))

    def _is_idle(self) -> bool:
        """Whether nothing has been stored in slabs for a while."""
        now = time.monotonic()
        return all(
            not slab.places and now - slab.idle_since > IDLE_SECONDS
            for slab in self._tiers.slabs.values()
            if slab.safety is SafetyClass.STORE
        )

    def _wanted_bytes(self) -> int:
        host = self._tiers.host
        slabs = [
            slab
            for slab in self._tiers.slabs.values()
            if slab.safety is SafetyClass.STORE and not slab.is_fenced
        ]
        stored = sum(slab.extents.used_bytes for slab in slabs)
        largest = max((slab.nbytes for slab in slabs), default=0)
        wanted = min(stored, max(LEAST_SLABS * largest, stored // SHARE))
        return max(0, min(wanted, host.limit_bytes - host.used_bytes))
