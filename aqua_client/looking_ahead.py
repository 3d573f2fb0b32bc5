"""Borrows the next slab before it is needed, in a thread of its own, so that no offload waits.

At most one empty slab is held so; `worker` gives it back like any other that is empty. When it is
worth it is `growth`'s to say. Does not cover what is asked in need (`borrowing`).
"""

from __future__ import annotations

import time

from aqua_client.borrowing import Borrowing
from aqua_client.borrowing_aside import BorrowingAside
from aqua_client.growth import Growth
from aqua_client.records import SafetyClass
from aqua_client.slabs import Slab
from aqua_client.tiers import Tiers


class LookingAhead:
    """One a worker."""

    def __init__(self, tiers: Tiers, borrowing: Borrowing, *, acquire_seconds: float) -> None:
        self._tiers = tiers
        self._borrowing = borrowing
        self._acquire_seconds = acquire_seconds
        self._growth = {safety: Growth() for safety in SafetyClass}
        self._aside = BorrowingAside(tiers)

    def look(self) -> None:
        """Under the lock: note how much is used, and let a thread borrow if that is due."""
        now = time.monotonic()
        for safety, growth in self._growth.items():
            slabs = [
                slab
                for slab in self._tiers.slabs.values()
                if slab.safety is safety and not slab.is_fenced
            ]
            if not slabs:
                continue
            used, free = (
                sum(slab.extents.used_bytes for slab in slabs),
                sum(slab.extents.free_bytes for slab in slabs),
            )
            growth.look(used_bytes=used, free_bytes=free, now=now)
            for slab in slabs:
                if slab.extents.used_bytes <= slab.nbytes // 2:
                    slab.low_bytes = slab.nbytes * 3 // 4
            is_nearly_full = free <= max(slab.nbytes for slab in slabs) // 4
            has_empty = not all(slab.places for slab in slabs)
            if (
                is_nearly_full
                and not has_empty
                and not self._aside.is_asking
                and growth.is_due(now=now)
            ):
                self._start(safety)

    def returned(self, slab: Slab) -> None:
        """An empty slab is given back."""
        if slab.is_ahead and slab.used_at == slab.idle_since:  # since it came
            self._growth[slab.safety].unused(now=time.monotonic())

    def _start(self, safety: SafetyClass) -> None:
        def borrow() -> bool:
            return self._borrowing.borrow_ahead(safety, seconds=self._acquire_seconds)

        def done(is_there: bool) -> None:  # noqa: FBT001 - the answer
            if not is_there:
                self._growth[safety].refused(now=time.monotonic())

        self._aside.start(borrow, done=done)
