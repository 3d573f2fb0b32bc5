"""A slab's memory by itself: sealed, scrubbed, and looked at without being touched."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aqua_daemon.keeper.gpu import ScrubFailed
from aqua_daemon.keeper.mappings import Mapped, who_maps
from aqua_daemon.keeper.shm_memory import ShmMemory, make_shm_memory
from tests.conftest import NOT_RUN_HERE

NBYTES = 4 * 2**20
WISHES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


@contextlib.contextmanager
def slab() -> Iterator[tuple[ShmMemory, int]]:
    """A slab and its holder's descriptor, both closed at the end."""
    with contextlib.closing(make_shm_memory("test", NBYTES)) as memory:
        held = memory.handle_for_holder().descriptor
        assert held is not None
        try:
            yield memory, held
        finally:
            with contextlib.suppress(OSError):
                os.close(held)


def mapped(memory: ShmMemory) -> Mapped:
    return memory.mapped(likely_pid=os.getpid())


def test_a_slab_is_its_canary_and_zeros_and_keeps_its_size() -> None:
    """Whoever has the descriptor can neither shrink nor grow it."""
    with slab() as (memory, held):
        content = os.pread(held, NBYTES, 0)
        assert content == memory.canary + bytes(NBYTES - len(memory.canary))
        for size in (0, NBYTES - 1, NBYTES + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(held, size)


def test_each_slab_has_a_canary_of_its_own() -> None:
    """It tells one slab from the next at the same place."""
    with slab() as (one, _), slab() as (other, _):
        assert one.canary != other.canary
        assert len(one.canary) == 64


@pytest.mark.skipif(
    not WISHES.exists() or "[advise]" not in WISHES.read_text(),
    reason=f"{NOT_RUN_HERE}shared memory with huge pages is missing",
)
def test_its_first_page_is_a_huge_one_where_the_kernel_has_some() -> None:
    """The canary's alone would have 511 small neighbours, which take long to unmap."""
    with slab() as (memory, _):
        assert os.fstat(memory.descriptor).st_blocks * 512 == 2 * 2**20


def test_without_a_huge_page_it_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a wish: to map it or to say so may fail."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, "no")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with slab() as (memory, held):
        assert os.pread(held, 64, 0) == memory.canary
        assert mapped(memory) is Mapped.NO


def test_every_kind_of_mapping_is_seen_and_stays_as_it_is() -> None:
    """Shared or private, writable or not, through a descriptor that is closed: looked at only."""
    with slab() as (memory, held):
        os.pwrite(held, b"holder's", 0)
        reading = os.open(f"/proc/self/fd/{held}", os.O_RDONLY)
        shared = mmap.mmap(held, NBYTES)
        os.close(held)
        assert mapped(memory) is Mapped.YES
        private = mmap.mmap(reading, NBYTES, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        shared.close()
        assert mapped(memory) is Mapped.YES
        assert private[:8] == b"holder's"
        private.close()
        assert mapped(memory) is Mapped.NO  # its reading descriptor is all that is left
        os.close(reading)
        assert mapped(memory) is Mapped.NO
        assert os.pread(memory.descriptor, 8, 0) == b"holder's"


def test_a_scrub_removes_every_byte() -> None:
    """Nothing is left in the file, and its pages are the kernel's again."""
    with slab() as (memory, held):
        os.pwrite(held, b"x" * NBYTES, 0)
        os.close(held)
        assert memory.scrub() == NBYTES
        assert os.fstat(memory.descriptor).st_blocks == 0


def test_a_kept_descriptor_is_of_no_more_use() -> None:
    """It shows zeros, and can neither be written nor mapped for writing again."""
    with slab() as (memory, held):
        os.pwrite(held, b"x" * NBYTES, 0)
        assert mapped(memory) is Mapped.NO
        assert memory.scrub() == NBYTES
        assert os.pread(held, NBYTES, 0) == bytes(NBYTES)
        with pytest.raises(PermissionError):
            os.pwrite(held, b"again", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(held, NBYTES)


def test_a_slab_that_is_mapped_meanwhile_is_not_taken_for_scrubbed() -> None:
    """The scrub says that it failed, and works once the mapping has gone."""
    with slab() as (memory, held):
        with contextlib.closing(mmap.mmap(held, NBYTES)), pytest.raises(ScrubFailed, match="maps"):
            memory.scrub()
        assert memory.scrub() == NBYTES


def test_a_holders_own_seals_keep_only_its_own_bytes() -> None:
    """A slab sealed against the scrub is not counted free while it can be reached, and is after."""
    with slab() as (memory, held):
        os.pwrite(held, b"mine", 0)
        fcntl.fcntl(held, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
        assert mapped(memory) is Mapped.NO
        with pytest.raises(ScrubFailed, match="keeps it from being scrubbed"):
            memory.scrub()
        os.close(held)
        assert memory.scrub() == 0


@pytest.mark.parametrize(("is_mapped", "expected"), [(True, Mapped.YES), (False, Mapped.NO)])
def test_a_holder_that_cant_be_looked_at_is_asked_by_a_seal(
    monkeypatch: pytest.MonkeyPatch, *, is_mapped: bool, expected: Mapped
) -> None:
    """Where its mappings are closed to us, the kernel still says whether it maps the slab."""
    monkeypatch.setattr("aqua_daemon.keeper.shm_memory.who_maps", unknown)
    with slab() as (memory, held):
        os.pwrite(held, b"mine", 0)
        mapping = mmap.mmap(held, NBYTES) if is_mapped else None
        assert mapped(memory) is expected
        if mapping is not None:
            assert mapping[:4] == b"mine"
            mapping.close()
            assert mapped(memory) is Mapped.NO
        assert memory.scrub() == 0  # it is sealed: only its ex-holder can read it, for good
        assert mapped(memory) is Mapped.NO


def unknown(_file: os.stat_result, *, likely_pid: int) -> Mapped:
    assert likely_pid
    return Mapped.UNKNOWN


def test_mappings_are_found_by_device_and_inode(tmp_path: Path) -> None:
    """Another file's mapping, a process that has ended and one that is closed to us are no find."""
    file = os.stat(__file__)  # noqa: PTH116 - a stat result is what it takes
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    (tmp_path / "self").mkdir()
    (tmp_path / "7").mkdir()  # ended: it has no maps any more
    closed = tmp_path / "8"
    closed.mkdir()
    (closed / "maps").mkdir()  # reading it fails as a closed one does
    other = tmp_path / "9"
    other.mkdir()
    (other / "maps").write_text(f"1000-2000 rw-s 00000000 {device} {file.st_ino}1  /other\n")
    assert who_maps(file, likely_pid=7, proc=tmp_path) is Mapped.NO
    assert who_maps(file, likely_pid=8, proc=tmp_path) is Mapped.UNKNOWN
    (other / "maps").write_text(f"1000-2000 rw-s 00000000 {device} {file.st_ino}  /slab\n")
    assert who_maps(file, likely_pid=8, proc=tmp_path) is Mapped.YES
    assert who_maps(file, likely_pid=9, proc=tmp_path) is Mapped.YES


def test_closing_twice_is_closing_once() -> None:
    """The second close has nothing to close."""
    memory = make_shm_memory("test", NBYTES)
    memory.close()
    memory.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory.descriptor)
