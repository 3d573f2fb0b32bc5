"""Address space: reserved, filled with files, protected, and given back, by the kernel's calls.

Python's mmap cannot place a mapping at an address, which VMM and reused addresses need. Nothing
mapped here is inherited by a forked child, as nothing of a GPU's memory is.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

PAGE_BYTES = mmap.PAGESIZE
GRANULE_BYTES = 2 << 20
_NO_ACCESS = 0
_NORESERVE, _FIXED, _FIXED_NOREPLACE = 0x4000, 0x10, 0x100000
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
_DONTFORK, _REMOVE = 10, 9
_PUNCH_HOLE = 0x02 | 0x01  # with FALLOC_FL_KEEP_SIZE
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_munmap = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_mprotect = _libc.mprotect
_mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_madvise = _libc.madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_fallocate = _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def rounded(nbytes: int, granule: int = GRANULE_BYTES) -> int:
    return -(-nbytes // granule) * granule


def reserve(nbytes: int, *, alignment: int = GRANULE_BYTES, near: int = 0) -> int:
    """Addresses that nothing is behind, at *near* if they are free there."""
    if near:
        address = _mmap(near, nbytes, _NO_ACCESS, _ANONYMOUS | _FIXED_NOREPLACE, -1, 0)
        if address == near:
            return near
    raw = _checked(_mmap(None, nbytes + alignment, _NO_ACCESS, _ANONYMOUS, -1, 0))
    address = rounded(raw, alignment)
    end, raw_end = address + nbytes, raw + nbytes + alignment
    for start, size in ((raw, address - raw), (end, raw_end - end)):
        if size:
            _munmap(start, size)
    return address


def release(address: int, nbytes: int) -> None:
    """Give the addresses back."""
    _munmap(address, nbytes)


def map_file(path: Path, address: int, nbytes: int, *, readable: bool = True) -> None:
    """Put the file's bytes behind reserved addresses."""
    protection = mmap.PROT_READ | mmap.PROT_WRITE if readable else _NO_ACCESS
    flags = mmap.MAP_SHARED | _NORESERVE | _FIXED
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        _checked(_mmap(address, nbytes, protection, flags, descriptor, 0))
    finally:
        os.close(descriptor)
    _madvise(address, nbytes, _DONTFORK)


def unmap_file(address: int, nbytes: int) -> None:
    """Take the bytes away again; the addresses stay reserved."""
    _checked(_mmap(address, nbytes, _NO_ACCESS, _ANONYMOUS | _FIXED, -1, 0))


def protect(address: int, nbytes: int, *, readable: bool, writable: bool) -> None:
    _mprotect(address, nbytes, mmap.PROT_READ * readable | mmap.PROT_WRITE * writable)


def host_memory(nbytes: int) -> int:
    """Ordinary memory, zeroed."""
    access = mmap.PROT_READ | mmap.PROT_WRITE
    return _checked(_mmap(None, rounded(nbytes, PAGE_BYTES), access, _ANONYMOUS, -1, 0))


def fill(address: int, nbytes: int, value: int) -> None:
    """Set device bytes; zeros on whole pages give the pages back, so that scrubbing costs none."""
    if value == 0:
        start = rounded(address, PAGE_BYTES)
        end = (address + nbytes) // PAGE_BYTES * PAGE_BYTES
        if end > start and _madvise(start, end - start, _REMOVE) == 0:
            ctypes.memset(address, 0, start - address)
            ctypes.memset(end, 0, address + nbytes - end)
            return
    ctypes.memset(address, value, nbytes)


def empty_file(path: Path) -> None:
    """Make all of it zeros, for those too who have it mapped."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        _checked(_fallocate(descriptor, _PUNCH_HOLE, 0, os.fstat(descriptor).st_size))
    finally:
        os.close(descriptor)


def _checked(result: int) -> int:
    if result in {-1, _FAILED}:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
