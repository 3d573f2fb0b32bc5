"""New memory of this process, by whole pages, that goes back to the kernel with its last view.

What is large is of huge pages where the kernel has some (`transparent_hugepage` not `never`): the first
write to it and giving it back then cost a fraction. So large memory begins where a huge page does, and
each piece is mapped by itself, so that none keeps another's pages. All of it is quick, and done
without letting go of the interpreter, for which an evacuation would wait each time.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref

import numpy as np
import numpy.typing as npt

from aqua_client import libc

HUGE_BYTES = 2 * 2**20

_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def new(nbytes: int) -> npt.NDArray[np.uint8]:
    """So many bytes, of which no page is there yet.

    Raises:
        MemoryError: they can't be had.
    """
    length = in_pages(nbytes)
    around = map_new(length + HUGE_BYTES)
    if around is None:
        raise MemoryError(f"{nbytes} bytes of host memory can't be had: {libc.failure('mmap')}")
    address = -(-around // HUGE_BYTES) * HUGE_BYTES
    if address > around:
        libc.held_munmap(around, address - around)
    libc.held_munmap(address + length, around + HUGE_BYTES - address)
    libc.held_madvise(address, length, libc.MADV_HUGEPAGE)  # a wish: without it, it is as any other
    return array(address, nbytes, length)


def map_new(length: int) -> int | None:
    """The address of so many bytes of new pages; None: they can't be had."""
    address: int | None = libc.held_mmap(
        None, length, mmap.PROT_READ | mmap.PROT_WRITE, _FLAGS, -1, 0
    )
    return None if address == libc.MAP_FAILED else address


def array(address: int, nbytes: int, length: int) -> npt.NDArray[np.uint8]:
    """*nbytes* at *address*; *length* are unmapped when the last view goes."""
    memory = memoryview((ctypes.c_ubyte * nbytes).from_address(address))
    made = np.frombuffer(memory, dtype=np.uint8)
    # A tensor made of it, and each of its views, keeps the array.
    weakref.finalize(made, libc.held_munmap, address, length).atexit = False
    return made


def in_pages(nbytes: int) -> int:
    """As much in whole pages."""
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
