"""Memory of an shm GPU that is no slab, and how long a copy between two of these takes."""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable

from aqua_daemon.keeper.gpu import Handle, ProbeMemory
from aqua_daemon.keeper.refusal import Refused


class ShmProbe:
    """Anonymous memory, all of it touched; its keeper has both ends of each link."""

    def __init__(self, *, nbytes: int, on_close: Callable[[int], None]) -> None:
        self._nbytes = nbytes
        self._on_close = on_close
        self._memory = mmap.mmap(-1, nbytes)
        held = (ctypes.c_char * nbytes).from_buffer(self._memory)
        self.address = ctypes.addressof(held)
        del held  # it would keep the memory from being closed
        ctypes.memset(self.address, 0, nbytes)

    def handle(self) -> Handle:
        """Refused: nobody else has a use for it."""
        raise Refused("FAILED_PRECONDITION", "the peers of a stand-in GPU are kept here")

    def close(self) -> None:
        """See `ProbeMemory.close`."""
        if not self._memory.closed:
            self._memory.close()
            self._on_close(self._nbytes)


def copy_seconds(source: ProbeMemory, target: ProbeMemory, nbytes: int) -> float:
    """See `gpu.Copying`; other threads run meanwhile."""
    began = time.perf_counter()
    ctypes.memmove(target.address, source.address, nbytes)
    return time.perf_counter() - began
