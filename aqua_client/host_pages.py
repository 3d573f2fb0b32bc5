"""New memory of this process, by whole pages, and arrays of it that tell when their last view goes.

All but `touch` is quick, and done without letting go of the interpreter, for which an evacuation would
wait each time. Of ordinary pages: a virtual machine that reports its free memory has no huge ones that are
there, and to evacuate to new ones took three times as long.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from aqua_client import libc

_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def map_new(length: int) -> int | None:
    """The address of so many bytes of new pages; None: they can't be had."""
    address: int | None = libc.held_mmap(
        None, length, mmap.PROT_READ | mmap.PROT_WRITE, _FLAGS, -1, 0
    )
    return None if address == libc.MAP_FAILED else address


def array(
    address: int, nbytes: int, gone: Callable[..., object], *arguments: object
) -> npt.NDArray[np.uint8]:
    """*nbytes* at *address*; *gone* is called, by garbage collection, when the last view goes."""
    memory = memoryview((ctypes.c_ubyte * nbytes).from_address(address))
    made = np.frombuffer(memory, dtype=np.uint8)
    # A tensor made of it, and each of its views, keeps the array.
    weakref.finalize(made, gone, *arguments).atexit = False
    return made


def touch(address: int, nbytes: int) -> bool:
    """Let the kernel make the pages of a range, all that are whole; whether it did. Changes no byte."""
    begin = in_pages(address)
    length = max(0, (address + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - begin)
    return not libc.madvise(begin, length, libc.MADV_POPULATE_WRITE)


def in_pages(nbytes: int) -> int:
    """As much in whole pages."""
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
