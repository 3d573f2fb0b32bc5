"""Maps the shared memory behind a descriptor so that no forked child can reach it.

Not Python's own `mmap`: that keeps a duplicate of the descriptor open, which a child inherits and
could map again. Here the descriptor is the caller's to close at once, and the pages are left out
of children (MADV_DONTFORK). To unmap what was written takes the kernel fifty times as long by small
pages as by huge ones: where it gives shared memory none by itself, `enlarge` asks for them (MADV_COLLAPSE,
Linux 6.1). Knows nothing of leases or of torch, nor when that is asked for (`enlarging`).
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import weakref

import numpy as np
import numpy.typing as npt

from aqua_client import libc

_F_GET_SEALS = 1034
_F_SEAL_SHRINK = 0x2
_PROT_NONE, _MAP_FIXED = 0x0, 0x10
_HUGE_PAGE_BYTES = 2 * 2**20


class Mapping:
    """Shared memory in this process, until `close`. It is not closed by garbage collection."""

    def __init__(self, descriptor: int, nbytes: int) -> None:
        """Map all of it. The descriptor stays the caller's.

        Raises:
            OSError: it can't be mapped, has fewer bytes, or could lose them (which kills readers).
        """
        _check_size(descriptor, nbytes)
        self._nbytes = nbytes
        self._reserved = _reserve(nbytes + _HUGE_PAGE_BYTES)
        self._address = -(-self._reserved // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
        self._looked_at_bytes = 0  # of which none is to be enlarged any more
        try:
            self._map(descriptor)
        except OSError:
            self._unmap()
            raise
        memory = memoryview((ctypes.c_ubyte * nbytes).from_address(self._address))
        self._array: npt.NDArray[np.uint8] | None = np.frombuffer(memory, dtype=np.uint8)
        # Every view, also a tensor's storage, keeps this array alive: so it tells of views.
        self._watched = weakref.ref(self._array)

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """All bytes. Whoever keeps it, or a view of it, keeps `close` from working."""
        if self._array is None:
            raise ValueError("the mapping is closed")
        return self._array

    def enlarge(self, nbytes: int) -> bool:
        """Have the next 2 MiB of the first *nbytes* be one huge page; False: they have all been asked for.

        It changes no byte. The kernel copies for a millisecond; who wants these bytes then waits so long.
        Where there is no such page, or nothing was written yet, they stay as they are.
        """
        begin, end = self._looked_at_bytes, self._looked_at_bytes + _HUGE_PAGE_BYTES
        if self._array is None or begin >= nbytes or end > self._nbytes:
            return False
        self._looked_at_bytes = end
        libc.madvise(self._address + begin, _HUGE_PAGE_BYTES, libc.MADV_COLLAPSE)
        return True

    def close(self) -> None:
        """Unmap. Idempotent.

        Raises:
            BufferError: somebody still has a view, who would crash the process by using it later.
        """
        if self._array is None:
            return
        self._array = None
        alive = self._watched()
        if alive is not None:
            self._array = alive
            raise BufferError("the mapping is still in use: a view of it is alive")
        self._unmap()

    def _map(self, descriptor: int) -> None:
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED
        if (
            libc.mmap(self._address, self._nbytes, protection, flags, descriptor, 0)
            != self._address
        ):
            raise libc.failure("mmap")
        if libc.madvise(self._address, self._nbytes, mmap.MADV_DONTFORK):
            raise libc.failure("madvise")
        # A wish, which the kernel hears where `shmem_enabled` is `advise`: to write the first time and
        # to unmap then cost a fraction. It is within what the slab counts, which is of whole ones.
        libc.held_madvise(self._address, self._nbytes, libc.MADV_HUGEPAGE)

    def _unmap(self) -> None:
        if libc.munmap(self._reserved, self._nbytes + _HUGE_PAGE_BYTES):
            raise libc.failure("munmap")


def _reserve(nbytes: int) -> int:
    """Addresses. A huge page's is a multiple of its size; the kernel chooses others for shared memory."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address: int | None = libc.mmap(None, nbytes, _PROT_NONE, flags, -1, 0)
    if address is None or address == libc.MAP_FAILED:
        raise libc.failure("mmap")
    return address


def _check_size(descriptor: int, nbytes: int) -> None:
    size = os.fstat(descriptor).st_size
    if size < nbytes:
        raise OSError(f"the slab's memory has {size} bytes, not the {nbytes} that were granted")
    if not fcntl.fcntl(descriptor, _F_GET_SEALS) & _F_SEAL_SHRINK:
        raise OSError("the slab's memory is not sealed against shrinking")
