"""Slabs of a real keeper: made, mapped by real processes, freed, and never seen by the next tenant."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from tests.keeper.holders import holder, lease_id
from tests.keeper.keepers import GPU_BYTES, running_keeper
from tests.keeper.peers import MIB, SLAB_BYTES, Peer


def held_bytes(daemon: Peer, gpu: str = "SHM-0") -> int:
    return sum(slab.nbytes for slab in daemon.report(gpu).slabs)


def test_a_slab_carries_its_holders_bytes() -> None:
    """What the holder writes is there for as long as the slab is, behind a canary of its own."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        slab = daemon.allocate(tenant)
        tenant.map(slab.descriptor)
        assert tenant.read(64) == slab.canary
        assert len(set(slab.canary)) > 8
        tenant.write(b"tenant bytes")
        assert os.pread(slab.descriptor, 12, 0) == b"tenant bytes"
        report = daemon.report()
        assert [(entry.tag.lease_id, entry.nbytes) for entry in report.slabs] == [
            (slab.lease_id, SLAB_BYTES)
        ]
        assert report.total_bytes == GPU_BYTES


def test_a_freed_slab_is_scrubbed_and_out_of_the_books() -> None:
    """After Freed the report knows nothing of it, and every byte was scrubbed."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        slab = daemon.allocate(tenant)
        tenant.map(slab.descriptor)
        tenant.write(b"x" * 4096)
        tenant.unmap()
        tenant.close_descriptor()
        reply = daemon.free(slab)
        assert reply.freed.lease_id == slab.lease_id
        assert reply.freed.scrubbed_bytes == SLAB_BYTES
        assert not reply.freed.freed_while_mapped
        assert not daemon.report().slabs
        assert daemon.report().freed_while_mapped == 0


def test_a_free_of_a_mapped_slab_waits_and_loses_nothing() -> None:
    """The bytes stay counted and readable until the holder unmaps; then the answer comes."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        slab = daemon.allocate(tenant)
        tenant.map(slab.descriptor)
        tenant.write(b"still mine")
        waiting = daemon.ask_to_free(slab)
        report = daemon.report()
        assert [entry.tag.lease_id for entry in report.slabs] == [slab.lease_id]
        assert report.freed_while_mapped == 1
        other = daemon.allocate(tenant, lease=2)  # nobody waits behind it
        assert tenant.read(10) == b"still mine"
        tenant.unmap()
        reply = daemon.answer(waiting)
        assert reply.freed.freed_while_mapped
        assert reply.freed.scrubbed_bytes == SLAB_BYTES
        report = daemon.report()
        assert [entry.tag.lease_id for entry in report.slabs] == [other.lease_id]
        assert report.freed_while_mapped == 1


def test_a_child_that_inherited_the_mapping_keeps_the_bytes_counted() -> None:
    """The holder's own death does not free what its child still maps."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        slab = daemon.allocate(tenant)
        tenant.map(slab.descriptor)
        child = tenant.fork()
        tenant.kill()
        waiting = daemon.ask_to_free(slab)
        report = daemon.report()
        assert [entry.tag.lease_id for entry in report.slabs] == [slab.lease_id]
        assert report.freed_while_mapped == 1
        os.kill(child, signal.SIGKILL)
        assert daemon.answer(waiting).freed.freed_while_mapped


def test_an_ex_tenant_that_kept_its_descriptor_sees_nothing() -> None:
    """Neither what it had written, nor what the next tenant writes into its own slab."""
    with (
        running_keeper() as keeper,
        keeper.daemon() as daemon,
        holder() as tenant,
        holder() as next_tenant,
    ):
        slab = daemon.allocate(tenant)
        tenant.map(slab.descriptor)
        tenant.write(b"old bytes")
        tenant.unmap()  # the descriptor stays open
        reply = daemon.free(slab)
        assert reply.freed.scrubbed_bytes == SLAB_BYTES
        fresh = daemon.allocate(next_tenant, lease=2)
        next_tenant.map(fresh.descriptor)
        assert next_tenant.read(128) == fresh.canary + bytes(64)
        next_tenant.write(b"secret of the next tenant" * 4)
        assert tenant.read_kept(4096) == bytes(4096)


def test_a_killed_holders_slab_can_be_freed_at_once() -> None:
    """The kernel unmaps what a dead process had mapped."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        slab = daemon.allocate(tenant)
        tenant.map(slab.descriptor)
        tenant.write(b"gone with me")
        tenant.kill()
        assert daemon.free(slab).freed.scrubbed_bytes == SLAB_BYTES


def test_freeing_what_is_not_there_is_answered_freed() -> None:
    """A free that is asked for twice has one effect and two answers."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        slab = daemon.allocate(tenant)
        assert daemon.free(slab).freed.scrubbed_bytes == SLAB_BYTES
        again = daemon.free(slab)
        assert again.freed.lease_id == slab.lease_id
        assert again.freed.scrubbed_bytes == 0


def test_a_gpu_never_holds_more_than_it_has() -> None:
    """What does not fit is refused with the figures; other GPUs have room of their own."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        for lease in range(1, 3):
            daemon.allocate(tenant, nbytes=32 * MIB, lease=lease)
        reply = daemon.answer(daemon.ask_for_slab(tenant, lease=3))
        assert reply.failed.code == "RESOURCE_EXHAUSTED"
        assert f"0 of {GPU_BYTES} bytes free, {SLAB_BYTES} are asked for" in reply.failed.message
        assert held_bytes(daemon) == GPU_BYTES
        assert daemon.allocate(tenant, gpu="SHM-1", lease=3).gpu == "SHM-1"


def test_a_slab_that_waits_to_be_freed_leaves_no_room() -> None:
    """Mapped bytes can't be given to somebody else, freed or not."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        slab = daemon.allocate(tenant, nbytes=32 * MIB)
        daemon.allocate(tenant, nbytes=32 * MIB, lease=2)
        tenant.map(slab.descriptor)
        waiting = daemon.ask_to_free(slab)
        asked = daemon.ask_for_slab(tenant, nbytes=32 * MIB, lease=3)
        assert daemon.answer(asked).failed.code == "RESOURCE_EXHAUSTED"
        tenant.unmap()
        tenant.close_descriptor()
        assert daemon.answer(waiting).freed.freed_while_mapped
        assert daemon.allocate(tenant, nbytes=32 * MIB, lease=3).lease_id == lease_id(3)


@pytest.mark.limit(120)
def test_two_thousand_slabs_leave_no_descriptor_behind() -> None:
    """The keeper's descriptors after 2,000 allocations and frees are those it had before."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        before = keeper.descriptors()
        for lease in range(1, 2001):
            daemon.free(daemon.allocate(tenant, lease=lease))
        keeper.wait_for_descriptors(before)


def test_running_out_of_descriptors_is_an_answer() -> None:
    """A keeper that may open no more says so, and goes on once some are free again."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        slab = daemon.allocate(tenant)
        highest = max(int(entry.name) for entry in Path(f"/proc/{keeper.pid}/fd").iterdir())
        _, hard = resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE)
        codes = []
        for room in range(6):
            resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (highest + room, hard))
            reply = daemon.answer(daemon.ask_for_slab(tenant, lease=2))
            codes.append(reply.failed.code)
            if reply.WhichOneof("kind") == "allocated":
                break
            assert [entry.tag.lease_id for entry in daemon.next_report().slabs] == [slab.lease_id]
        assert codes[0]
        assert set(codes) <= {"", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}
        resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (hard, hard))
        assert daemon.allocate(tenant, lease=3).lease_id == lease_id(3)
