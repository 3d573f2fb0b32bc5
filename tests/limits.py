"""Takes from a process, the test's own or another, what the kernel lets it have.

Covers descriptors and file sizes (of a memfd too, so a keeper's shared memory). Soft limits only:
they go back up at the end of each block, whatever happened in it.
"""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """This process may open nothing: what it has stays as it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(_descriptors("self"))
    filling: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
        while True:  # the gaps too
            try:
                filling.append(os.open("/", os.O_PATH | os.O_CLOEXEC))
            except OSError:
                break
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in filling:
            os.close(descriptor)


@contextmanager
def no_more_descriptors_of(pid: int) -> Iterator[None]:
    """That process may open nothing: its limit is the lowest descriptor that it has not used."""
    used = _descriptors(str(pid))
    lowest = next(number for number in itertools.count() if number not in used)
    with _limited(pid, resource.RLIMIT_NOFILE, lowest):
        yield


@contextmanager
def no_more_shared_memory_of(pid: int) -> Iterator[None]:
    """That process can make no file of more than a page, which is what memory of its is."""
    with _limited(pid, resource.RLIMIT_FSIZE, 4096):
        yield


@contextmanager
def _limited(pid: int, what: int, most: int) -> Iterator[None]:
    soft, hard = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (most, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, what, (soft, hard))


def _descriptors(pid: str) -> set[int]:
    return {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
