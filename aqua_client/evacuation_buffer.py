"""Keeps some host memory touched, so that an evacuation copies at full speed.

How much: two of the largest slabs held, or a tenth of the `store` data in slabs, whichever is
larger, and never more than that data. A revoke takes whole slabs, seldom more than two of one process
at once; of a process that stores hundreds of slabs more are taken together. It lies within the host
room that was reserved with these slabs, so nobody else is promised it, and within this process's
limit; offloads to the host take no page of it. Only the worker fills it. After a revoke what is too much
goes once the slabs have been told of, whose owner waits: to unmap it takes as long as to unmap them.

In a process that uses CUDA all of it is pinned, on the GPU's NUMA node: half of the process's limit at
most, used ones among it. As long as offloads go to the host, some more is pinned ahead for them, as far
as room is reserved. Where the driver does not pin, pages are only touched.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from aqua_client import host_pages, pinned
from aqua_client.copying import Memory
from aqua_client.cuda_errors import CudaError
from aqua_client.records import SafetyClass
from aqua_client.streams import Streams
from aqua_client.tiers import Tiers

LEAST_SLABS = 2
SHARE = 10  # of what is stored, one part in so many

# Pinned memory is taken from the whole machine, and pinning it takes a millisecond for each 4 MiB.
PINNED_SHARE = 2
AHEAD_BYTES = 64 * 2**20

# Smaller pieces come from the C library's own heap, whose pages are mostly there.
LEAST_PIECE_BYTES = 64 * 2**10

# With nothing stored it is kept so long: who parks and releases in turns would fill it each time.
IDLE_SECONDS = 3.0

logger = logging.getLogger("aqua")


class EvacuationBuffer:
    """The worker's."""

    def __init__(self, tiers: Tiers, streams: Streams | None = None) -> None:
        self._tiers = tiers
        self._streams = streams
        self._refusal = ""  # by the driver: from then on pages are only touched

    def memories(self, sizes: Sequence[int]) -> list[Memory]:
        """Host memory for pieces of these sizes, of the buffer as long as that has some.

        Raises:
            MemoryError: there is none.
        """
        host = self._tiers.host
        with self._tiers.lock:
            found = [
                host.take_kept(size, evacuating=True) if size >= LEAST_PIECE_BYTES else None
                for size in sizes
            ]
        return [
            _new_memory(size) if memory is None else memory
            for size, memory in zip(sizes, found, strict=True)
        ]

    def tend(self) -> None:
        """Fill it up, step by step, until there is something else to do. Or give it back."""
        self._fit()
        if self._tend_pinned():
            return
        tiers = self._tiers
        buffer = tiers.host.buffer
        is_filling = False  # once a quarter is missing, all of it is filled up
        while True:
            with tiers.lock:
                if tiers.has_changed:
                    return
                wanted = max(0, self._wanted_bytes() - tiers.host.pinned.nbytes)
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

    def _tend_pinned(self) -> bool:
        """The same with pinned memory; whether there is something else to do."""
        ordinal = None if self._streams is None else self._streams.home_ordinal
        host = self._tiers.host
        while ordinal is not None:
            with self._tiers.lock:
                if self._tiers.has_changed:
                    return True
                host.pinned.collect()
                wanted = self._wanted_pinned_bytes()
                if wanted < host.pinned.nbytes and self._is_idle():
                    host.pinned.keep(wanted)
                missing = wanted - host.pinned.nbytes
            try:
                host.pinned.unpin_surplus()
                if missing < pinned.PIECE_BYTES or self._refusal:
                    return False
                piece = host.pinned.pin(ordinal)
            except (CudaError, MemoryError) as error:
                if str(error) != self._refusal:
                    self._refusal = str(error)
                    logger.warning("host memory is not pinned: %s", error)
                return False
            with self._tiers.lock:
                host.pinned.add(piece)
        return False

    def _wanted_pinned_bytes(self) -> int:
        """Under the lock: for evacuations, and for the offloads that go to the host anyway."""
        host = self._tiers.host
        host.evacuation_bytes = self._wanted_bytes()
        most = host.limit_bytes // PINNED_SHARE
        room = min(host.reserved_bytes or most, most) - host.used_bytes
        ahead = min(AHEAD_BYTES, max(0, room)) if host.used_bytes else 0
        used = host.pinned.pinned_bytes - host.pinned.nbytes
        return max(0, min(host.evacuation_bytes + ahead, most - used))

    def _fit(self) -> None:
        """No more than what is reserved with the slabs that are there; none where nothing was stored of late."""
        host, reserved = self._tiers.host, 0
        with self._tiers.lock:
            for slab in self._tiers.slabs.values():
                if slab.safety is SafetyClass.STORE:
                    reserved += slab.nbytes - host.covered_bytes(slab.lease_id)
            host.keep(max(0, reserved))
            if host.buffer.nbytes and self._is_idle():
                host.buffer.keep(0)
        host.buffer.unmap_surplus()

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


def _new_memory(nbytes: int) -> Memory:
    memory = Memory.of_host(nbytes)
    if nbytes >= LEAST_PIECE_BYTES:
        # Of pages that come all at once instead of one by one as they are written: a seventh quicker.
        host_pages.touch(memory.address, nbytes)
    return memory
