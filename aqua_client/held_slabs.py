"""The slabs that are held, and which of them has room.

Everything here is short and runs under `Tiers.lock`. The fullest is filled first, so that others
become empty and can be given back.
"""

from __future__ import annotations

from aqua_client.records import SafetyClass
from aqua_client.slabs import Slab


class HeldSlabs:
    """By lease id, and of each class the one that is being filled, which is never fenced."""

    def __init__(self) -> None:
        self.by_lease: dict[str, Slab] = {}
        self._current: dict[SafetyClass, Slab] = {}

    def with_room(self, nbytes: int, safety: SafetyClass, avoid_gpu: str) -> Slab | None:
        """One where so much can be put at once."""
        slab = self._current.get(safety)
        if (
            slab is not None
            and slab.extents.largest_free_bytes >= nbytes
            and slab.lender_gpu != avoid_gpu
        ):
            return slab
        found = [
            slab
            for slab in self.by_lease.values()
            if slab.safety is safety and _has_room(slab, nbytes, avoid_gpu)
        ]
        fullest = min(found, key=lambda slab: slab.extents.free_bytes, default=None)
        if fullest is not None:
            self._current[safety] = fullest
        return fullest

    @property
    def free_bytes(self) -> int:
        """What is free in all of them."""
        return sum(one.extents.free_bytes for one in self.by_lease.values() if not one.is_fenced)

    def add(self, slab: Slab) -> None:
        """One has been borrowed; one that is ahead of need is filled after the others."""
        self.by_lease[slab.lease_id] = slab
        if not slab.is_ahead:
            self._current[slab.safety] = slab

    def forget(self, slab: Slab) -> None:
        """One has been unmapped."""
        self.by_lease.pop(slab.lease_id, None)
        self.leave(slab)

    def leave(self, slab: Slab) -> None:
        """One is not filled any more."""
        if self._current.get(slab.safety) is slab:
            del self._current[slab.safety]


def _has_room(slab: Slab, nbytes: int, avoid_gpu: str) -> bool:
    return (
        not slab.is_fenced
        and slab.extents.largest_free_bytes >= nbytes
        and slab.lender_gpu != avoid_gpu
    )
