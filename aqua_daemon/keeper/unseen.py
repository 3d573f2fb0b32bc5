"""What is used of a GPU and is in no figures of NVML's yet.

Covers what the driver took beside a slab, and what a free should have given back and did not: both
are used by others from the moment that they are known, until NVML has been read after it.
"""

from __future__ import annotations

from aqua_daemon.keeper.nvml_reader import Figures, NvmlReader

_MIB = 2**20


class Unseen:
    """Of one GPU, beside what its reader has read."""

    def __init__(self, reader: NvmlReader) -> None:
        self._reader = reader
        self._unseen: list[tuple[int, int]] = []  # revision of `Held`, bytes used by then
        self._missing_bytes = 0  # freed, and still used as far as can be told
        self._missing_floor = 0  # what others used before

    @property
    def nbytes(self) -> int:
        """To be added to the figures that were told of last."""
        return sum(nbytes for _, nbytes in self._unseen)

    @property
    def warning(self) -> str:
        """That memory which was freed is used all the same; else empty."""
        if not self._missing_bytes:
            return ""
        return (
            f"{self._missing_bytes // _MIB} MiB were freed and are still used (unreturned): "
            "somebody has them mapped"
        )

    def note(self, nbytes: int) -> None:
        """So much is used, and is in no figures before those that are read from now on."""
        if nbytes > 0:
            self._unseen.append((self._reader.held.revision, nbytes))
            self._reader.wake()

    def note_missing(self, nbytes: int) -> None:
        """So much was freed, and the device does not have it back."""
        figures = self._reader.latest
        if not self._missing_bytes:
            self._missing_floor = figures.others_bytes if figures else 0
        self._missing_bytes += nbytes
        self.note(nbytes)

    def seen(self, figures: Figures) -> None:
        """What the figures have in them by now need not be added to them."""
        self._unseen = [one for one in self._unseen if one[0] > figures.revision]
        if not self._unseen:
            above = max(0, figures.others_bytes - self._missing_floor)
            self._missing_bytes = min(self._missing_bytes, above)
