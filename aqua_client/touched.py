"""Host memory whose pages are already there, to be handed out piece by piece.

Memory that is new costs a page fault for each page at its first write, several times what copying
into it costs. Here that is paid ahead, in steps and by whoever has time; a piece that is handed out
is its holder's alone, and goes back to the kernel by itself when it is dropped. Needs
MADV_POPULATE_WRITE (Linux 5.14): without it nothing is kept. To give back what is kept takes the kernel
70 ms for a GiB: that is apart, for whoever holds no lock. Not thread-safe, but for `touch` and
`unmap_surplus`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aqua_client import host_pages, libc

# One step takes about a millisecond; whoever touches looks around in between.
STEP_BYTES = 4 * 2**20


@dataclass(slots=True)
class Step:
    """A range that is to be touched next. An address, because pieces are cut from its front."""

    address: int
    nbytes: int

    def touch(self) -> bool:
        """Let the kernel make the pages; whether it did. Needs no lock: it changes no byte."""
        return host_pages.touch(self.address, self.nbytes)


@dataclass(slots=True)
class _Region:
    """From *begin* to *ready* it is touched, to *end* mapped."""

    begin: int
    ready: int
    end: int


class TouchedPages:
    """What is kept. `nbytes` counts what is touched, which is what it costs."""

    def __init__(self) -> None:
        self._regions: list[_Region] = []
        self._surplus: list[tuple[int, int]] = []  # by address and length

    @property
    def nbytes(self) -> int:
        """Touched, and not handed out."""
        return sum(region.ready - region.begin for region in self._regions)

    def next_step(self, missing_bytes: int) -> Step | None:
        """What to touch next so that there are so many bytes more; then comes `touched`.

        None: no memory can be had.
        """
        last = self._regions[-1] if self._regions else None
        if last is None or last.ready == last.end:
            length = host_pages.in_pages(missing_bytes)
            address = host_pages.map_new(length)
            if address is None:
                return None
            last = _Region(address, address, address + length)
            self._regions.append(last)
        return Step(last.ready, min(STEP_BYTES, last.end - last.ready))

    def touched(self, step: Step) -> None:
        """It has been; no matter if it was given back meanwhile."""
        for region in self._regions:
            if region.ready == step.address and step.nbytes <= region.end - region.ready:
                region.ready += step.nbytes

    def take(self, nbytes: int) -> npt.NDArray[np.uint8] | None:
        """A piece of so many bytes, unmapped when the last view of it goes; None: too few."""
        length = host_pages.in_pages(nbytes)
        for region in self._regions:
            if region.ready - region.begin >= length:
                address, region.begin = region.begin, region.begin + length
                return host_pages.array(address, nbytes, libc.held_munmap, address, length)
        return None

    def keep(self, most_bytes: int) -> None:
        """What is more than so many bytes is for `unmap_surplus`; 0: everything."""
        surplus = self.nbytes - most_bytes
        for region in tuple(self._regions):
            if surplus <= 0 and most_bytes:
                return
            kept = max(0, region.ready - region.begin - host_pages.in_pages(max(0, surplus)))
            surplus -= region.ready - region.begin - kept
            end = region.begin + kept
            if region.end > end:
                self._surplus.append((end, region.end - end))
            region.ready = region.end = end
            if not kept:
                self._regions.remove(region)

    def unmap_surplus(self) -> None:
        """Give it back to the kernel."""
        with suppress(IndexError):  # several threads may
            while True:
                libc.munmap(*self._surplus.pop())
