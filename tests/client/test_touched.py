"""Pages are there before they are handed out, belong to their holder, and go back."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from aqua_client import host_pages, libc
from aqua_client.touched import STEP_BYTES, TouchedPages
from tests.client.pagers import random_bytes

MIB = 2**20


def filled(nbytes: int) -> TouchedPages:
    pages = TouchedPages()
    while pages.nbytes < nbytes:
        step = pages.next_step(nbytes - pages.nbytes)
        assert step is not None
        assert step.nbytes <= STEP_BYTES
        assert step.touch()
        pages.touched(step)
    return pages


def resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * mmap.PAGESIZE


def test_what_is_kept_is_resident_and_goes_back() -> None:
    """It costs what it says, and nothing afterwards."""
    before = resident_bytes()
    pages = filled(64 * MIB)
    assert pages.nbytes == 64 * MIB
    assert resident_bytes() - before > 48 * MIB
    pages.keep(16 * MIB)
    assert pages.nbytes == 16 * MIB
    pages.keep(0)
    assert pages.nbytes == 0
    assert resident_bytes() - before > 48 * MIB
    pages.unmap_surplus()
    assert resident_bytes() - before < 32 * MIB


def test_pieces_are_apart_and_outlive_what_they_came_from() -> None:
    """Each holds its bytes until its last view goes."""
    pages = filled(8 * MIB)
    pieces = [pages.take(MIB + seed) for seed in range(4)]
    assert pages.nbytes == 8 * MIB - 4 * MIB - 3 * mmap.PAGESIZE
    for seed, piece in enumerate(pieces):
        assert piece is not None
        assert piece.nbytes == MIB + seed
        assert not piece.any()
        piece[:] = random_bytes(MIB + seed, seed=seed).numpy()
    pages.keep(0)
    for seed, piece in enumerate(pieces):
        assert piece is not None
        assert np.array_equal(piece, random_bytes(MIB + seed, seed=seed).numpy())


def test_a_piece_goes_back_with_its_last_view() -> None:
    """Nobody has to close it."""
    pages = filled(32 * MIB)
    piece = pages.take(32 * MIB)
    assert piece is not None
    view = piece[MIB:]
    before = resident_bytes()
    del piece
    assert not view[-10:].any()
    del view
    assert before - resident_bytes() > 16 * MIB
    assert pages.nbytes == 0


def test_more_than_is_touched_is_not_to_be_had() -> None:
    """A page fault is what this is to spare."""
    pages = TouchedPages()
    step = pages.next_step(16 * MIB)
    assert step is not None
    assert pages.take(1) is None
    assert step.touch()
    pages.touched(step)
    assert pages.take(step.nbytes + 1) is None
    assert pages.take(step.nbytes) is not None
    pages.keep(0)


def test_a_step_that_comes_too_late_counts_nothing() -> None:
    """All of it was given back meanwhile."""
    pages = TouchedPages()
    step = pages.next_step(16 * MIB)
    assert step is not None
    pages.keep(0)
    pages.touched(step)
    assert pages.nbytes == 0


def test_of_a_range_the_whole_pages_are_made_and_no_byte_is_changed() -> None:
    """What lies beside it, and in it, is as it was."""
    address = host_pages.map_new(64 * MIB)
    assert address is not None
    bytes_there = host_pages.array(address, 64 * MIB, libc.munmap, address, 64 * MIB)
    bytes_there[MIB : MIB + 100] = 7
    before = resident_bytes()
    assert host_pages.touch(address + MIB + 50, 32 * MIB)
    assert 24 * MIB < resident_bytes() - before < 40 * MIB
    assert int(bytes_there[: 33 * MIB].sum(dtype=np.int64)) == 7 * 100
    assert host_pages.touch(address + 1, 10)  # no whole page: nothing to do
