"""The C library's calls on memory by raw address: to move bytes, and to map and unmap.

Why Python's own `mmap` is not enough: it keeps a duplicate of each descriptor open, which a child
inherits.
"""

from __future__ import annotations

import ctypes
import os

MAP_FAILED = ctypes.c_void_p(-1).value
# Not in `mmap` where Python was built on an old system.
MADV_HUGEPAGE = 14
MADV_POPULATE_WRITE = 23
MADV_COLLAPSE = 25

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


def prefer_node(address: int, nbytes: int, node: int | None) -> None:
    """Let pages come of a NUMA node where it has some: a wish, before they are first written."""
    if node is None or _MBIND is None or node >= _MOST_NODES:
        return
    mask = (ctypes.c_ulong * (_MOST_NODES // 64))()
    mask[node // 64] = 1 << (node % 64)
    _libc.syscall(
        ctypes.c_long(_MBIND),
        ctypes.c_void_p(address),
        ctypes.c_ulong(nbytes),
        ctypes.c_int(_PREFERRED),
        mask,
        ctypes.c_ulong(_MOST_NODES + 1),
        ctypes.c_uint(0),
    )


_MOST_NODES = 1024
_PREFERRED = 1  # MPOL_PREFERRED
_MBIND = {"x86_64": 237, "aarch64": 235}.get(os.uname().machine)


def failure(call: str) -> OSError:
    """Why *call*, one of these, has just failed in this thread."""
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
