"""Has the pages of slabs be huge ones while nothing is stored or fetched, so that they are unmapped sooner.

Slabs of shared memory are of small pages where the administrator leaves the kernel's defaults, and to unmap
a GiB of these takes longer than an owner should wait for what needs no copy. The kernel makes huge ones
of them by copying, whose new memory a virtual machine may have to be given by its host first: 1 to 5 ms
for 2 MiB. Doing it ahead of the first write would cost less, but held up those who write: there the
host has small pages sooner. So it is done once, of what is filled, and never beside other copies.
"""

from __future__ import annotations

import time
from math import inf

from aqua_client.slabs import Slab
from aqua_client.tiers import Tiers

QUIET_SECONDS = 1.0


class Enlarging:
    """Used by the worker's thread only."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers
        self._done_until = -inf  # what was used last before this has been looked at

    def look(self) -> None:
        """If it is quiet: step by step, until it no longer is, or there is something else to do."""
        began = time.monotonic()
        with self._tiers.lock:
            slabs = [one for one in self._tiers.slabs.values() if one.used_at > self._done_until]
        for slab in slabs:
            while (nbytes := self._filled_bytes(slab)) is not None and slab.memory.enlarge(nbytes):
                pass
            if nbytes is None:
                return
        self._done_until = began

    def _filled_bytes(self, slab: Slab) -> int | None:
        """Up to where something lies there; None: it is not quiet."""
        tiers = self._tiers
        with tiers.lock:
            used_at = max(tiers.fetched_at, *(one.used_at for one in tiers.slabs.values()), 0.0)
            is_wanted = tiers.has_changed or tiers.garbage  # by what this thread has to do
            if is_wanted or time.monotonic() - used_at < QUIET_SECONDS:
                return None
            return max((one.offset + one.nbytes for one in tuple(slab.places)), default=0)
