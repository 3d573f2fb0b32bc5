"""The memory of one shm slab: a memfd, made for one lease and never given to another.

Covers making it, knowing whether somebody still maps it, and scrubbing it. Does not cover who holds
it and how many bytes there may be (`node`).

Two kernel rules shape this:

1. F_SEAL_WRITE is refused with EBUSY while any process has a shared mapping through a writable
   descriptor, and once it is set none can be made. So setting it asks "does anybody map it?" and
   answers "nobody ever will again" in one step, at no cost and without touching a byte. A private
   mapping, or one through a descriptor reopened read-only, is not seen: it can't write either.
2. Under F_SEAL_WRITE holes can't be punched, but the file can be cut to nothing. So a slab is born
   sealed against growth, not against shrinking: its holder could only cut off its own memory. What
   an ex-holder's kept descriptor shows after the scrub is an empty file, for good.

A holder can add seals of its own and so break rule 1 for its slab (`is_tampered`). Then every
process's mappings are looked at instead, and what can't be looked at counts as mapped.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
from dataclasses import dataclass

from aqua_daemon.keeper.mappings import Mapped, who_maps

CANARY_BYTES = 64
# F_SEAL_EXEC and what later kernels add do not matter here.
_FOREIGN_SEALS = (
    fcntl.F_SEAL_SEAL
    | fcntl.F_SEAL_SHRINK
    | fcntl.F_SEAL_WRITE
    | getattr(fcntl, "F_SEAL_FUTURE_WRITE", 0x10)
)
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 0x01, 0x02
_SAMPLE_BYTES = 4096
_SAMPLES = 8
_libc = ctypes.CDLL(None, use_errno=True)


class ScrubFailed(Exception):
    """Bytes that should be gone are there, or can't be removed: the slab must not be counted free."""


@dataclass(slots=True, kw_only=True)
class SlabMemory:
    """One memfd. Whoever made it closes it."""

    descriptor: int
    nbytes: int
    canary: bytes
    _is_sealed: bool = False  # by us: nobody maps it, nobody will

    def mapped(self) -> Mapped:
        """Whether any process maps it; after the first `Mapped.NO` it never can be again."""
        if self._is_sealed:
            return Mapped.NO
        if self.is_tampered:
            return who_maps(os.fstat(self.descriptor))
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return Mapped.YES
            return Mapped.UNKNOWN  # sealed by its holder since we looked: next time it is tampered
        self._is_sealed = True
        return Mapped.NO

    @property
    def is_tampered(self) -> bool:
        """The holder has set seals: what they forbid can't be done any more."""
        seals = fcntl.fcntl(self.descriptor, fcntl.F_GET_SEALS)
        return not self._is_sealed and bool(seals & _FOREIGN_SEALS)

    def scrub(self) -> int:
        """Remove every byte of a slab that nobody maps; how many.

        Raises:
            ScrubFailed: the holder's seals forbid it, or bytes are left.
        """
        with contextlib.suppress(PermissionError):
            os.ftruncate(self.descriptor, 0)
        if os.fstat(self.descriptor).st_blocks:
            _punch(self.descriptor, self.nbytes)
        if os.fstat(self.descriptor).st_blocks:
            msg = "the holder has sealed the slab against scrubbing"
            raise ScrubFailed(msg)
        return self.nbytes

    def close(self) -> None:
        """Give the memory back. May be called twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def make_slab_memory(name: str, nbytes: int) -> SlabMemory:
    """A new slab: zero but for a random canary at its start.

    Raises:
        OSError: the kernel has no memory or no descriptor for it; nothing is left behind.
        ScrubFailed: it is not zero.
    """
    with contextlib.ExitStack() as undo:
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        undo.callback(os.close, descriptor)
        os.ftruncate(descriptor, nbytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        _verify_zero(descriptor, nbytes)
        canary = secrets.token_bytes(CANARY_BYTES)
        os.pwrite(descriptor, canary, 0)
        undo.pop_all()
    return SlabMemory(descriptor=descriptor, nbytes=nbytes, canary=canary)


def _verify_zero(descriptor: int, nbytes: int) -> None:
    # Pages of a new memfd come zeroed from the kernel: a sample is enough to see that it is new.
    for sample in range(_SAMPLES):
        offset = (nbytes - _SAMPLE_BYTES) * sample // (_SAMPLES - 1)
        if any(os.pread(descriptor, _SAMPLE_BYTES, offset)):
            msg = f"a new slab is not zero at byte {offset}"
            raise ScrubFailed(msg)


def _punch(descriptor: int, nbytes: int) -> None:
    mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    _libc.fallocate(descriptor, mode, ctypes.c_long(0), ctypes.c_long(nbytes))
