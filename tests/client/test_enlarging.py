"""Slabs are of huge pages once nothing is stored or fetched for a while, and unmapped the sooner."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aqua_client import enlarging, libc, worker
from aqua_client.copying import Memory
from aqua_client.counters import Counters
from aqua_client.enlarging import Enlarging
from aqua_client.mapping import Mapping
from aqua_client.records import Grant, SafetyClass
from aqua_client.slabs import Place, Slab, Stored
from aqua_client.tiers import Tiers
from tests.client.pagers import paging, park, random_bytes
from tests.conftest import NOT_RUN_HERE
from tests.fakes.session import MIB, FakeNode, slab_descriptor
from tests.nodes import wait_until

PAGE_BYTES = 2 * MIB
GRANT = Grant(
    lease_id="a",
    lender_gpu="SHM-1",
    nbytes=8 * MIB,
    safety_class=SafetyClass.CACHE,
    keeper_pid=1,
    canary=b"",
    descriptor=None,
    cuda_ipc=b"",
)


class CountingMemory(Memory):
    """A slab's, which counts how often its pages were asked for."""

    __slots__ = ("asked",)

    def __init__(self) -> None:
        super().__init__(torch.empty(1, dtype=torch.uint8))
        self.asked = 0

    def enlarge(self, nbytes: int) -> bool:
        if self.asked * PAGE_BYTES >= nbytes:
            return False
        self.asked += 1
        return True


def tiers_of(*memories: CountingMemory) -> Tiers:
    """What a process holds that has a slab of each, with 5 MiB in it."""
    tiers = Tiers(host_limit_bytes=0, counters=Counters())
    for number, memory in enumerate(memories):
        slab = Slab(replace(GRANT, lease_id=str(number)), memory, now=0.0)
        tiers.add_slab(slab)
        slab.places.add(Place(memory, MIB, 4 * MIB, Stored(4 * MIB, SafetyClass.CACHE), slab))
    tiers.has_changed = False
    return tiers


def kilobytes(name: str, lease_id: str) -> int:
    """What the kernel says of a slab's mapping."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    assert any(f"slab-{lease_id}" in line for line in lines)
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def mapped(name: str, nbytes: int) -> Mapping:
    """A slab's memory."""
    descriptor = slab_descriptor(name, nbytes, b"canary")
    mapping = Mapping(descriptor, nbytes)
    os.close(descriptor)
    return mapping


def gives_huge_pages() -> bool:
    """Whether this kernel makes one of shared memory for who asks: asked here, not by what is tested."""
    descriptor = os.memfd_create("tried")
    os.ftruncate(descriptor, PAGE_BYTES)
    reserved = libc.mmap(None, 2 * PAGE_BYTES, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    address = -(-reserved // PAGE_BYTES) * PAGE_BYTES
    protection, map_fixed = mmap.PROT_READ | mmap.PROT_WRITE, 0x10
    libc.mmap(address, PAGE_BYTES, protection, mmap.MAP_SHARED | map_fixed, descriptor, 0)
    os.close(descriptor)
    ctypes.memset(address, 1, PAGE_BYTES)
    is_given: bool = libc.madvise(address, PAGE_BYTES, libc.MADV_COLLAPSE) == 0
    libc.munmap(reserved, 2 * PAGE_BYTES)
    return is_given


def test_what_is_filled_is_of_huge_pages_and_no_other_byte_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are there when it has been quiet for a while; what was stored is as it was."""
    if not gives_huge_pages():
        pytest.skip(f"{NOT_RUN_HERE}shared memory of huge pages is not to be had of this kernel")
    monkeypatch.setattr(worker, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(enlarging, "QUIET_SECONDS", 0.05)
    node = FakeNode(smallest_slab_bytes=16 * MIB)
    tensor = random_bytes(5 * MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        (lease_id,) = node.ids_on("SHM-1")
        wait_until(lambda: kilobytes("ShmemPmdMapped", lease_id) == 6 * 1024, what="they are huge")
        assert kilobytes("Rss", lease_id) == 6 * 1024
        assert torch.equal(handle.fetch(), tensor)


def test_each_is_asked_for_once_while_it_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a slab is filled; what is used again is looked at again."""
    monkeypatch.setattr(enlarging, "QUIET_SECONDS", 0.0)
    memories = [CountingMemory(), CountingMemory()]
    tiers = tiers_of(*memories)
    looks = Enlarging(tiers)
    looks.look()
    assert [one.asked for one in memories] == [3, 3]
    for one in memories:
        one.asked = 0
    looks.look()
    assert [one.asked for one in memories] == [0, 0]
    tiers.slabs["1"].used_at = time.monotonic()
    looks.look()
    assert [one.asked for one in memories] == [0, 3]


@pytest.mark.parametrize("what", ["a fetch", "another slab", "news", "garbage"])
def test_nothing_is_asked_for_beside_anything_else(what: str) -> None:
    """Neither beside what is stored or fetched, nor before a revoke or garbage that has come; later it is."""
    memory = CountingMemory()
    tiers = tiers_of(memory, CountingMemory())
    tiers.has_changed = what == "news"
    if what == "garbage":
        tiers.garbage.append(Stored(0, SafetyClass.CACHE))
    tiers.fetched_at = time.monotonic() + 60.0 if what == "a fetch" else 0.0
    tiers.slabs["1"].used_at = time.monotonic() + 60.0 if what == "another slab" else 0.0
    looks = Enlarging(tiers)
    looks.look()
    assert memory.asked == 0
    tiers.has_changed = False
    tiers.collect_garbage()
    tiers.fetched_at = tiers.slabs["1"].used_at = 0.0
    looks.look()
    assert memory.asked == 3


def test_a_revoke_waits_for_no_more_than_one() -> None:
    """After each it is seen whether there is something else to do."""

    class Interrupted(CountingMemory):
        __slots__ = ()

        def enlarge(self, nbytes: int) -> bool:
            tiers.has_changed = True
            return super().enlarge(nbytes)

    memory = Interrupted()
    tiers = tiers_of(memory)
    Enlarging(tiers).look()
    assert memory.asked == 1


def test_a_kernel_that_gives_none_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is asked for once, and the slab is as it was."""
    mapping = mapped("refused", 5 * MIB)
    mapping.array[:] = 7
    refused: list[int] = []

    def madvise(_address: int, nbytes: int, _advice: int) -> int:
        refused.append(nbytes)
        ctypes.set_errno(errno.EINVAL)
        return -1

    monkeypatch.setattr(libc, "madvise", madvise)
    assert [mapping.enlarge(5 * MIB) for _ in range(4)] == [True, True, False, False]
    assert refused == [PAGE_BYTES] * 2
    assert (mapping.array == 7).all()
    mapping.close()
    assert not mapping.enlarge(5 * MIB)


def test_a_slab_lies_where_huge_pages_can_and_gives_its_addresses_back() -> None:
    """Its first byte is at a multiple of their size; nothing stays reserved."""

    def reserved_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")

    before = reserved_bytes()
    for number in range(256):
        mapping = mapped(f"at-{number}", 2 * MIB)
        assert mapping.array.ctypes.data % PAGE_BYTES == 0
        mapping.close()
    assert reserved_bytes() - before < 256 * MIB
