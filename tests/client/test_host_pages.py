"""New memory is its holder's alone, begins where a huge page can, and goes back with its last view."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from aqua_client import host_pages, libc
from aqua_client.copying import Memory
from aqua_client.host_pages import HUGE_BYTES
from aqua_client.mapping import Mapping
from tests.client.pagers import random_bytes
from tests.fakes.session import MIB, slab_descriptor

THP = Path("/sys/kernel/mm/transparent_hugepage")


def flags_of(address: int) -> set[str]:
    """What the kernel says of the mapping there; empty: there is none."""
    is_it = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            begin, end = (int(one, 16) for one in first.split("-"))
            is_it = begin <= address < end
        elif is_it and first == "VmFlags:":
            return set(rest)
    return set()


@pytest.mark.parametrize("nbytes", [1, HUGE_BYTES, 4 * MIB + mmap.PAGESIZE + 1])
def test_it_is_aligned_zero_and_as_long_as_was_asked(nbytes: int) -> None:
    """Whatever lies before and behind is nobody's of ours."""
    pieces = [host_pages.new(nbytes) for _ in range(3)]
    for seed, piece in enumerate(pieces):
        assert piece.nbytes == nbytes
        assert piece.ctypes.data % HUGE_BYTES == 0
        assert not piece.any()
        piece[:] = random_bytes(nbytes, seed=seed).numpy()
    for seed, piece in enumerate(pieces):
        assert np.array_equal(piece, random_bytes(nbytes, seed=seed).numpy())


def test_it_goes_with_its_last_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, and nothing is kept for the next one."""
    gone, unmap = list[tuple[int, int]](), libc.held_munmap

    def unmapped(address: int, length: int) -> int:
        gone.append((address, length))
        return int(unmap(address, length))

    monkeypatch.setattr(libc, "held_munmap", unmapped)
    piece = host_pages.new(4 * MIB)
    address, view = piece.ctypes.data, piece[MIB:]
    gone.clear()
    del piece
    view[:] = 1
    assert gone == []
    del view
    assert gone == [(address, 4 * MIB)]


def test_memory_that_can_not_be_had_is_a_memory_error() -> None:
    """It says how much that is."""
    with pytest.raises(MemoryError, match="4611686018427387904 bytes"):
        host_pages.new(2**62)


@pytest.mark.skipif(not THP.exists(), reason="this kernel has no huge pages")
def test_huge_pages_are_wished_for_buffers_and_slabs() -> None:
    """What the kernel makes of it is an operator's affair."""
    buffer = Memory.of_host(4 * MIB)
    assert "hg" in flags_of(buffer.address)
    mapping = Mapping(slab_descriptor("wished", 4 * MIB, b"canary"), 4 * MIB)
    assert "hg" in flags_of(mapping.array.ctypes.data)
    mapping.close()
