"""The memory of one shm slab: a memfd, made for one lease and never given to another.

Covers making it, handing it out, knowing whether somebody still maps it, and scrubbing it. Does not
cover who holds it and how many bytes there may be (`node`).

Whether it may be freed has to be asked without touching a byte, for a slab that is mapped stays as
it is. Three kernel rules make that cheap:

1. The kernel grants F_WRLCK leases on a file only while nothing else has it open, and a mapping
   keeps the open file that it was made through. The holder gets an open file of its own, so a
   lease on ours says "no descriptor and no mapping of it is left, of whatever kind": 2 us, and
   given back at once.
2. Where that says no, somebody has a mapping or just a descriptor: /proc/PID/maps tells which. A
   kept descriptor does not hold up a free. So the whole range is punched out, and F_SEAL_WRITE set,
   in this order, for a sealed file can't be punched. Setting it fails with EBUSY if a process that
   could not be looked at maps the slab after all: then it stays counted. Once it is set, nobody
   can bring back bytes that are not counted, and a kept descriptor shows zeros for good.
3. Where not even the holder's mappings may be looked at, F_SEAL_WRITE is asked first: EBUSY says
   "mapped", and else nobody ever maps it again. A kept descriptor then shows its holder's own bytes.

A holder can set seals of its own that forbid all this. It only keeps its own bytes by that, for as
long as it lives, and they stay counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import secrets
from dataclasses import dataclass

from aqua_protos.keeper_pb2 import DESCRIPTOR_KIND_SHARED_MEMORY

from aqua_daemon.keeper.gpu import CANARY_BYTES, Handle, ScrubFailed
from aqua_daemon.keeper.mappings import Mapped, who_maps
from aqua_daemon.keeper.refusal import exhausted

_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 0x01, 0x02
_MADV_HUGEPAGE, _MADV_POPULATE_WRITE = 14, 23
_HUGE_PAGE_BYTES = 2 * 2**20
_SAMPLES = 8
_ZEROS = bytes(4096)  # one sample
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True, kw_only=True)
class ShmMemory:
    """One memfd. Whoever made it closes it."""

    descriptor: int  # an open file that nobody else has
    nbytes: int
    canary: bytes
    _is_unscrubbable: bool = False  # sealed by us before it was scrubbed: rule 3

    def handle_for_holder(self) -> Handle:
        """A descriptor of an open file of its own; the caller closes it.

        Raises:
            Refused: there is no descriptor left for it.
        """
        try:
            descriptor = _opened_again(self.descriptor)
        except OSError as error:
            raise exhausted(f"the slab's descriptor can't be made: {error}") from error
        return Handle(descriptor=descriptor, descriptor_kind=DESCRIPTOR_KIND_SHARED_MEMORY)

    def mapped(self, *, likely_pid: int) -> Mapped:
        """Whether any process maps it; *likely_pid* is looked at first."""
        if self._is_unscrubbable or self._is_alone():
            return Mapped.NO
        try:
            found = who_maps(os.fstat(self.descriptor), likely_pid=likely_pid)
        except OSError:
            return Mapped.UNKNOWN  # out of descriptors: it can be asked again
        if found is not Mapped.UNKNOWN:
            return found
        refusal = self._seal()
        if refusal is None:
            self._is_unscrubbable = True
            return Mapped.NO
        return Mapped.YES if refusal.errno == errno.EBUSY else Mapped.UNKNOWN

    def scrub(self) -> int:
        """Remove every byte of a slab that nobody maps; how many.

        Returns:
            0 where seals forbid it but nobody can reach it, or nobody but its holder can read it.
            The kernel zeroes what `close` gives back to it.

        Raises:
            ScrubFailed: somebody could still see or change bytes in it. Nothing is lost by trying
            again.
        """
        was_alone = self._is_alone()
        mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
        if _libc.fallocate(self.descriptor, mode, ctypes.c_long(0), ctypes.c_long(self.nbytes)):
            if was_alone or self._is_unscrubbable:
                return 0
            msg = f"the holder keeps it from being scrubbed: {os.strerror(ctypes.get_errno())}"
            raise ScrubFailed(msg)
        refusal = None if was_alone else self._seal()
        if refusal is not None:
            msg = f"somebody maps or seals it meanwhile: {refusal.strerror}"
            raise ScrubFailed(msg)
        _check_has_no_pages(self.descriptor)
        _verify_zero(self.descriptor, self.nbytes)
        return self.nbytes

    def close(self) -> None:
        """Give the memory back. May be called twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _is_alone(self) -> bool:
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:
            return False  # EAGAIN; or leases are switched off here, and /proc has to tell
        fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return True

    def _seal(self) -> OSError | None:
        """Keep it from being mapped or written ever again; why not, if that is refused."""
        try:
            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
        except OSError as error:
            return error
        return None


def make_shm_memory(name: str, nbytes: int) -> ShmMemory:
    """A new slab: sealed against shrinking and growing, zero but for a random canary at its start.

    Raises:
        OSError: the kernel has no memory or no descriptor for it; nothing is left behind.
        ScrubFailed: it is not zero.
    """
    made = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(made, nbytes)
        # What memfd_create returns is not in the kernel's count of open files; this is.
        descriptor = _opened_again(made)
    finally:
        os.close(made)
    try:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        _check_has_no_pages(descriptor)
        _wish_for_a_huge_page(descriptor, nbytes)
        canary = secrets.token_bytes(CANARY_BYTES)
        os.pwrite(descriptor, canary, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return ShmMemory(descriptor=descriptor, nbytes=nbytes, canary=canary)


def _wish_for_a_huge_page(descriptor: int, nbytes: int) -> None:
    """Have the canary's page be a huge one, where the kernel gives shared memory some to who asks.

    It would be a small one, as those around it: to unmap 2 MiB of these takes ten times as long as to
    unmap the rest of a slab. Where the kernel has none this is the small one.
    """
    wished = min(nbytes, _HUGE_PAGE_BYTES)
    with contextlib.suppress(OSError), mmap.mmap(descriptor, wished) as memory:
        memory.madvise(_MADV_HUGEPAGE)
        memory.madvise(_MADV_POPULATE_WRITE, 0, mmap.PAGESIZE)  # fails where a write would kill


def _opened_again(descriptor: int) -> int:
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)


def _check_has_no_pages(descriptor: int) -> None:
    if os.fstat(descriptor).st_blocks:
        msg = "there are bytes in it that should be gone, or were never written"
        raise ScrubFailed(msg)


def _verify_zero(descriptor: int, nbytes: int) -> None:
    # The kernel punches whole ranges: a sample shows that it is so here.
    for sample in range(_SAMPLES):
        offset = (nbytes - len(_ZEROS)) * sample // (_SAMPLES - 1)
        # Compared as a whole: looking at byte after byte was half of what a grant cost.
        if os.pread(descriptor, len(_ZEROS), offset) != _ZEROS:
            msg = f"it is not zero at byte {offset}"
            raise ScrubFailed(msg)
