"""Borrowing and giving back, again and again, leaves nothing behind anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.places import Place

FEW_MAPPINGS = 12  # what an allocator of the C library may add or take by itself
CYCLES = {"shm": 500, "fake legacy": 100, "fake vmm": 100}  # the made-up driver's slabs are large
CUDA_CYCLES = 10_000


@pytest.mark.limit(580)
def test_descriptors_mappings_and_memory_stay_as_they_are(place: Place) -> None:
    """In the client, the keeper and the daemon, and on the GPU."""
    cycles = CYCLES.get(place.name, CUDA_CYCLES)
    with place.tenant() as tenant:
        tenant.ask("cycles", count=10, nbytes=place.slab_bytes, byte=0)
        place.await_none_lent()
        free = place.settled_free_bytes()
        before = {pid: held_by(pid) for pid in (place.keeper_pid(), place.node.pid)}
        tenant.begin("cycles", count=cycles, nbytes=place.slab_bytes, byte=0)
        figures = tenant.answer(seconds=550)["figures"]
        assert isinstance(figures, list)
        (early_descriptors, early_mappings), (descriptors, mappings) = figures
        assert descriptors <= early_descriptors
        assert mappings <= early_mappings + FEW_MAPPINGS
        place.await_all_free(free)
        for pid, (descriptors_before, mappings_before) in before.items():
            now_descriptors, now_mappings = held_by(pid)
            assert now_descriptors <= descriptors_before + 1, pid
            assert now_mappings <= mappings_before + FEW_MAPPINGS, pid


def held_by(pid: int) -> tuple[int, int]:
    """A process's descriptors and mappings."""
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return descriptors, len(Path(f"/proc/{pid}/maps").read_text().splitlines())
