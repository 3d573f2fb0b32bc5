"""The books of one shm GPU: what slabs and owners leave free, and who is refused."""

from __future__ import annotations

import pytest
from aqua_protos.keeper_pb2 import SlabTag

from aqua_daemon.keeper.gpu import Slab
from aqua_daemon.keeper.node import KeptGpus
from aqua_daemon.keeper.refusal import Refused
from aqua_daemon.keeper.shm_gpu import ShmGpu, shm_gpus
from aqua_daemon.keeper.shm_memory import ShmMemory

MIB = 2**20


def gpu_with(*, slab_bytes: int = 0, owners: dict[int, int] | None = None) -> ShmGpu:
    """A GPU of 64 MiB that holds one slab of that size, and those owners."""
    gpu = ShmGpu(name="SHM-0", total_bytes=64 * MIB)
    if slab_bytes:
        memory = ShmMemory(descriptor=-1, nbytes=slab_bytes, canary=bytes(64))
        gpu.slabs["a"] = Slab(tag=SlabTag(lease_id="a"), memory=memory)
    gpu.owner_bytes.update(owners or {})
    return gpu


@pytest.mark.parametrize(
    ("slab_bytes", "owners", "free_bytes"),
    [
        (0, {}, 64 * MIB),
        (32 * MIB, {}, 32 * MIB),
        (0, {1: 8 * MIB, 2: 8 * MIB}, 48 * MIB),
        (32 * MIB, {1: 32 * MIB}, 0),
    ],
)
def test_free_is_what_neither_slabs_nor_owners_hold(
    slab_bytes: int, owners: dict[int, int], free_bytes: int
) -> None:
    """All of it fits, and one byte more does not."""
    gpu = gpu_with(slab_bytes=slab_bytes, owners=owners)
    assert gpu.free_bytes == free_bytes
    gpu.check_room(free_bytes)
    with pytest.raises(Refused, match=f"has {free_bytes} of {64 * MIB} bytes free") as refused:
        gpu.check_room(free_bytes + 1)
    assert refused.value.code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize(
    ("asked", "what_fits", "gets"),
    [
        (0, False, 0),
        (4 * MIB, False, 4 * MIB),  # shrinking always fits
        (32 * MIB, False, 32 * MIB),
        (33 * MIB, True, 32 * MIB),  # what it has and what is free
        (2**62, True, 32 * MIB),
    ],
)
def test_an_owner_has_what_it_was_given_last(asked: int, *, what_fits: bool, gets: int) -> None:
    """It had 8 MiB beside a slab of 32 MiB; what it has now replaces them."""
    gpu = gpu_with(slab_bytes=32 * MIB, owners={1: 8 * MIB})
    assert gpu.set_owner(1, asked, what_fits=what_fits) == gets
    assert gpu.owner_bytes == ({1: gets} if gets else {})


def test_an_owner_that_is_refused_keeps_what_it_had() -> None:
    """All or nothing, unless it asked for what fits."""
    gpu = gpu_with(slab_bytes=32 * MIB, owners={1: 8 * MIB})
    with pytest.raises(Refused, match="24"):
        gpu.set_owner(1, 33 * MIB, what_fits=False)
    assert gpu.owner_bytes == {1: 8 * MIB}


def test_an_owner_that_gets_nothing_is_none() -> None:
    """A full GPU has no owner of 0 bytes."""
    gpu = gpu_with(owners={1: 64 * MIB})
    assert gpu.set_owner(2, MIB, what_fits=True) == 0
    assert gpu.owner_bytes == {1: 64 * MIB}


def test_a_report_says_all_of_it() -> None:
    """Tags, sizes, owners and the count of frees while mapped."""
    gpu = gpu_with(slab_bytes=32 * MIB, owners={1: 8 * MIB})
    gpu.freed_while_mapped = 3
    report = gpu.report()
    assert (report.gpu, report.total_bytes, report.freed_while_mapped) == ("SHM-0", 64 * MIB, 3)
    assert [(slab.tag.lease_id, slab.nbytes) for slab in report.slabs] == [("a", 32 * MIB)]
    assert [(owner.pid, owner.nbytes) for owner in report.owners] == [(1, 8 * MIB)]


def test_owners_end_on_every_gpu() -> None:
    """A process that ends leaves nothing behind on any of them."""
    sizes = {"smallest_slab_bytes": 4 * MIB, "largest_slab_bytes": 32 * MIB}
    node = KeptGpus(shm_gpus(count=2, gpu_bytes=64 * MIB, **sizes), **sizes)
    for report in node.reports():
        assert not report.owners
    assert not node.has_owner()
    node.end_owner(1)  # unknown: nothing happens
    assert not node.has_owner(1)


@pytest.mark.parametrize(
    ("gpus", "gpu_bytes", "smallest", "largest"),
    [
        (0, 64 * MIB, 4 * MIB, 32 * MIB),
        (1, 2 * MIB, 4 * MIB, 32 * MIB),
        (1, 64 * MIB, 0, 32 * MIB),
        (1, 64 * MIB, 32 * MIB, 4 * MIB),
    ],
)
def test_a_node_that_could_hold_nothing_is_refused(
    gpus: int, gpu_bytes: int, smallest: int, largest: int
) -> None:
    """The message has every figure."""
    with pytest.raises(ValueError, match=f"{gpus} GPUs of {gpu_bytes} bytes with slabs"):
        shm_gpus(
            count=gpus,
            gpu_bytes=gpu_bytes,
            smallest_slab_bytes=smallest,
            largest_slab_bytes=largest,
        )
