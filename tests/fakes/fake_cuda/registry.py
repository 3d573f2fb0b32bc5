"""The books of a fake node, shared by real processes: one file, changed under a file lock.

A process may be killed at any moment: a change is written beside the books and moved over them,
and each look first forgets what dead processes had, by pid and start time. The lock is released
before a fork of this process can copy its descriptor.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.fakes.fake_cuda import pages
from tests.fakes.fake_cuda.books import Books, Holder
from tests.fakes.fake_cuda.description import GpuDescription, NodeDescription

_STATE, _START_TIME = 0, 19  # of /proc/PID/stat after the name
_one_at_a_time = threading.RLock()


def start_time(pid: int) -> str | None:
    """When the process began, in ticks since boot; None when it is gone, reaped or not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[_STATE] in {b"Z", b"X"} else fields[_START_TIME].decode()


def this_holder() -> Holder:
    return f"{os.getpid()}:{start_time(os.getpid())}"


def is_gone(holder: Holder) -> bool:
    pid, _, start = holder.partition(":")
    return start_time(int(pid)) != start


class Registry:
    """One node's folder: the description, the books, and a file for each allocation."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.node = NodeDescription.read(directory)
        self._books = directory / "books"

    @contextmanager
    def books(self) -> Iterator[Books]:
        """The books, with the dead gone from them; what was changed is kept, unless it raises."""
        with _one_at_a_time, self._locked():
            before, books = self._read()
            books.drop_holders(is_gone)
            self._collect(books)
            yield books
            self._collect(books)
            self._write(before, books)

    def file_of(self, number: int) -> Path:
        return self.directory / "allocations" / str(number)

    def make_file(self, number: int, *, uuid: str, nbytes: int) -> Path:
        """A sparse file; where the node leaves bytes behind, with those of a freed allocation."""
        path = self.file_of(number)
        path.unlink(missing_ok=True)  # of a process that was killed before it could count it
        left = self.directory / "leftovers" / uuid
        if self.node.leftovers and left.exists():
            left.rename(path)
        with path.open("ab") as file:
            file.truncate(nbytes)
        return path

    def is_lost(self, uuid: str) -> bool:
        """Whether the GPU fell off the bus."""
        return (self.directory / "gone" / uuid).exists()

    def gpu(self, index: int) -> GpuDescription:
        """The GPU as NVML sees it now: what it was described as, and what has changed since."""
        gpu = self.node.gpus[index]
        try:
            return replace(gpu, **json.loads((self.directory / "state" / gpu.uuid).read_text()))
        except FileNotFoundError:
            return gpu

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _read(self) -> tuple[bytes, Books]:
        try:
            content = self._books.read_bytes()
        except FileNotFoundError:
            return b"", Books()
        books = pickle.loads(content)  # noqa: S301 - the node's own folder
        assert isinstance(books, Books)
        return content, books

    def _write(self, before: bytes, books: Books) -> None:
        content = pickle.dumps(books)
        if content != before:
            fresh = self._books.with_suffix(".new")
            fresh.write_bytes(content)
            fresh.rename(self._books)

    def _collect(self, books: Books) -> None:
        """Give back what nobody holds any more."""
        held = {hold.number for hold in books.holds}
        for allocation in list(books.allocations.values()):
            number = allocation.number
            in_flight = allocation.has_descriptors and self._is_in_a_descriptor(number)
            if number not in held and not in_flight:
                del books.allocations[number]
                self._discard(number, uuid=allocation.uuid)
            elif not allocation.is_vmm and not allocation.is_freed:
                self._end_with_exporter(books, number)

    def _end_with_exporter(self, books: Books, number: int) -> None:
        """What an exporter's death does to those who have its memory mapped."""
        if self.node.exporter_death == "mapping_stays" or books.holds_of(number, "owner"):
            return
        marker = self.file_of(number).with_suffix(".lost")
        if not marker.exists():
            marker.touch()
            pages.empty_file(self.file_of(number))
            books.lost.append(number)

    def _is_in_a_descriptor(self, number: int) -> bool:
        """Each exported descriptor shares a lock that ends with its last copy, even in flight."""
        try:
            descriptor = os.open(self.file_of(number), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _discard(self, number: int, *, uuid: str) -> None:
        path = self.file_of(number)
        if self.node.leftovers and path.exists():
            path.rename(self.directory / "leftovers" / uuid)
        path.unlink(missing_ok=True)
        path.with_suffix(".lost").unlink(missing_ok=True)


os.register_at_fork(
    before=_one_at_a_time.acquire,
    after_in_parent=_one_at_a_time.release,
    after_in_child=_one_at_a_time.release,
)
