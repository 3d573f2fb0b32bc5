"""Maps the shared memory behind a descriptor so that no forked child can reach it.

Not Python's own `mmap`: that keeps a duplicate of the descriptor open, which a child inherits and
could map again. Here the descriptor is the caller's to close at once, and the pages are left out
of children (MADV_DONTFORK). Knows nothing of leases or of torch.
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


class Mapping:
    """Shared memory in this process, until `close`. It is not closed by garbage collection."""

    def __init__(self, descriptor: int, nbytes: int) -> None:
        """Map all of it. The descriptor stays the caller's.

        Raises:
            OSError: it can't be mapped, has fewer bytes, or could lose them (which kills readers).
        """
        _check_size(descriptor, nbytes)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        address = libc.mmap(None, nbytes, protection, mmap.MAP_SHARED, descriptor, 0)
        if address is None or address == libc.MAP_FAILED:
            raise libc.failure("mmap")
        if libc.madvise(address, nbytes, mmap.MADV_DONTFORK):
            failure = libc.failure("madvise")
            libc.munmap(address, nbytes)
            raise failure
        # A wish, which the kernel hears where `shmem_enabled` is `advise`: to write the first time and
        # to unmap then cost a fraction. It is within what the slab counts, which is of whole ones.
        libc.held_madvise(address, nbytes, libc.MADV_HUGEPAGE)
        self._address = address
        self._nbytes = nbytes
        memory = memoryview((ctypes.c_ubyte * nbytes).from_address(address))
        self._array: npt.NDArray[np.uint8] | None = np.frombuffer(memory, dtype=np.uint8)
        # Every view, also a tensor's storage, keeps this array alive: so it tells of views.
        self._watched = weakref.ref(self._array)

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """All bytes. Whoever keeps it, or a view of it, keeps `close` from working."""
        if self._array is None:
            raise ValueError("the mapping is closed")
        return self._array

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
        if libc.munmap(self._address, self._nbytes):
            raise libc.failure("munmap")


def _check_size(descriptor: int, nbytes: int) -> None:
    size = os.fstat(descriptor).st_size
    if size < nbytes:
        raise OSError(f"the slab's memory has {size} bytes, not the {nbytes} that were granted")
    if not fcntl.fcntl(descriptor, _F_GET_SEALS) & _F_SEAL_SHRINK:
        raise OSError("the slab's memory is not sealed against shrinking")
