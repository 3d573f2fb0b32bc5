"""Host memory that a GPU copies to and from by itself: pinned ahead, piece by piece, and used again.

Pinning takes the driver's lock for long, so the worker alone does it, and nothing is pinned or given
back under a lock of ours, or by garbage collection: a piece whose last view goes only says that it is
free. Each lies on the GPU's NUMA node where the kernel has room there. Not thread-safe, but for `pin`
and `unpin_surplus`. Does not cover how much is kept (`evacuation_buffer`).
"""

from __future__ import annotations

import logging
import mmap
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aqua_client import cuda_driver, host_pages, libc
from aqua_client.cuda_errors import CONTEXT_GONE, CudaError

PIECE_BYTES = 4 * 2**20  # the host tier's largest; much smaller ones are not worth one
LEAST_BYTES = PIECE_BYTES // 2

logger = logging.getLogger("aqua")


@dataclass(frozen=True, slots=True)
class Piece:
    """`PIECE_BYTES` that are pinned in a device's context."""

    address: int
    ordinal: int


class PinnedPages:
    """One a client."""

    def __init__(self) -> None:
        """Nothing is pinned."""
        self._free: list[Piece] = []
        self._surplus: list[Piece] = []
        self._returned: deque[Piece] = deque()  # filled by garbage collection, which takes no lock
        self._count = 0

    @property
    def nbytes(self) -> int:
        """Pinned, and not handed out."""
        return len(self._free) * PIECE_BYTES

    @property
    def pinned_bytes(self) -> int:
        """All that is pinned."""
        return self._count * PIECE_BYTES

    def pin(self, ordinal: int) -> Piece:
        """A new piece, then comes `add`.

        Raises:
            MemoryError: there is no memory.
            CudaError: the driver does not pin it.
        """
        address = host_pages.map_new(PIECE_BYTES)
        if address is None:
            raise MemoryError(f"{PIECE_BYTES} bytes of host memory can't be had")
        try:
            libc.prefer_node(address, PIECE_BYTES, cuda_driver.numa_node(ordinal))
            libc.madvise(address, PIECE_BYTES, mmap.MADV_DONTFORK)
            libc.madvise(address, PIECE_BYTES, libc.MADV_POPULATE_WRITE)
            cuda_driver.pin(address, PIECE_BYTES, ordinal=ordinal)
        except BaseException:
            libc.munmap(address, PIECE_BYTES)
            raise
        return Piece(address, ordinal)

    def add(self, piece: Piece) -> None:
        """It may be handed out."""
        self._free.append(piece)
        self._count += 1

    def take(self, nbytes: int) -> tuple[npt.NDArray[np.uint8], int] | None:
        """So many bytes, free again when the last view of them goes, and the device's ordinal."""
        self.collect()
        if not self._free or not LEAST_BYTES <= nbytes <= PIECE_BYTES:
            return None
        piece = self._free.pop()
        made = host_pages.array(piece.address, nbytes, self._returned.append, piece)
        return made, piece.ordinal

    def collect(self) -> None:
        """What was handed out and is needed no more is free again."""
        while self._returned:
            self._free.append(self._returned.popleft())

    def keep(self, most_bytes: int) -> None:
        """What is free beyond so many bytes is for `unpin_surplus`."""
        self.collect()
        while self.nbytes > max(0, most_bytes):
            self._surplus.append(self._free.pop())
            self._count -= 1

    def close(self) -> None:
        """Give back all that is free. What somebody still has stays until the process ends."""
        self.keep(0)
        try:
            self.unpin_surplus()
        except CudaError as error:
            logger.info("some host memory stays pinned: %s", error)

    def unpin_surplus(self) -> None:
        """Give it back to the kernel. What the driver refuses stays pinned, and is nobody's.

        Raises:
            CudaError: it refused.
        """
        while self._surplus:
            piece = self._surplus.pop()
            try:
                cuda_driver.unpin(piece.address, ordinal=piece.ordinal)
            except CudaError as error:
                if error.name not in CONTEXT_GONE:
                    raise
            libc.munmap(piece.address, PIECE_BYTES)
