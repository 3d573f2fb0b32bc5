"""The C library's calls on memory by raw address: to move bytes, and to map and unmap.

Why Python's own `mmap` is not enough: it keeps a duplicate of each descriptor open, which a child
inherits.
"""

from __future__ import annotations

import ctypes
import os

MAP_FAILED = ctypes.c_void_p(-1).value
MADV_HUGEPAGE = 14  # not in `mmap` where Python was built on an old system

_libc = ctypes.CDLL(None, use_errno=True)

mmap = _libc.mmap
mmap.restype = ctypes.c_void_p
mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
madvise = _libc.madvise
madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
munmap = _libc.munmap
munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

# With the interpreter's lock: to let go of it, and to wait for it again, may take a thousand times as
# long as what is small or quick.
_held = ctypes.PyDLL(None, use_errno=True)
held_mmap = _held.mmap
held_mmap.restype, held_mmap.argtypes = mmap.restype, mmap.argtypes
held_madvise = _held.madvise
held_madvise.argtypes = madvise.argtypes
held_munmap = _held.munmap
held_munmap.argtypes = munmap.argtypes

# To, from, bytes. With that lock, too.
move = ctypes.PyDLL(None).memmove
move.restype = None
move.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def failure(call: str) -> OSError:
    """Why *call*, one of these, has just failed in this thread."""
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
