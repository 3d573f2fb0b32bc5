"""The daemon's links over real keepers: orders, answers, refusals and the next daemon."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from aqua_daemon.core.events import (
    GpuReported,
    KeeperAttached,
    KeeperEnded,
    SlabAllocated,
    SlabAllocationFailed,
    SlabFreed,
)
from aqua_daemon.core.model import GpuUuid, LeaseId, SessionId
from tests.keeper.holders import Holder, holder, lease_id
from tests.keeper.keepers import Keeper, running_keeper
from tests.keeper.links import SHM_0, SHM_1, Linked, free_of, granted, linked, order_for, outside
from tests.keeper.peers import SLAB_BYTES
from tests.nodes import short_directory


def test_a_slab_from_order_to_freed() -> None:
    """Attached, allocated with its handle, reported, freed: each told once, in this order."""

    async def story(keeper: Keeper, tenant: Holder) -> None:
        async with linked(outside(keeper.socket)) as node:
            attached = await node.event(KeeperAttached)
            assert [report.gpu for report in attached.reports] == [SHM_0, SHM_1]
            assert attached.slabs == ()
            order = await granted(node, tenant)
            handle = node.links.handle(order.tag.lease_id)
            assert handle is not None
            assert handle.descriptor is not None
            assert handle.keeper_pid == keeper.pid
            assert os.pread(handle.descriptor, 64, 0) == handle.canary
            reported = await node.event(GpuReported, after=len(node.events))
            assert reported.report.slab_bytes == {order.tag.lease_id: SLAB_BYTES}
            node.links.free(free_of(order))
            assert node.links.handle(order.tag.lease_id) is None
            assert await node.event(SlabFreed) == SlabFreed(
                lease_id=order.tag.lease_id, scrubbed_bytes=SLAB_BYTES
            )

    with running_keeper() as keeper, holder() as tenant:
        asyncio.run(story(keeper, tenant))


def test_handles_that_a_client_has_are_dropped_and_no_others() -> None:
    """Of all that a keepalive names, also of leases whose handles went long ago."""

    async def story(keeper: Keeper, tenant: Holder) -> None:
        async with linked(outside(keeper.socket)) as node:
            await node.event(KeeperAttached)
            has, has_not = [(await granted(node, tenant, lease)).tag.lease_id for lease in (1, 2)]
            descriptor = _descriptor(node, has)
            for _ in range(2):
                node.links.drop_handles([LeaseId(lease_id(3)), has])
                assert node.links.handle(has) is None
                assert _descriptor(node, has_not) is not None
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)

    def _descriptor(node: Linked, lease: LeaseId) -> int:
        handle = node.links.handle(lease)
        assert handle is not None
        assert handle.descriptor is not None
        return handle.descriptor

    with running_keeper() as keeper, holder() as tenant:
        asyncio.run(story(keeper, tenant))


def test_the_next_daemon_learns_everything_before_it_is_attached() -> None:
    """A whole tag comes back as it went, and the holder's proofs come first."""

    async def story(keeper: Keeper, tenant: Holder) -> None:
        async with linked(outside(keeper.socket)) as first:
            await first.event(KeeperAttached)
            order = await granted(first, tenant)
        async with linked(outside(keeper.socket)) as second:
            attached = await second.event(KeeperAttached)
            assert isinstance(second.events[0], KeeperAttached)
            assert attached.slabs == (order.tag,)
            assert set(second.holders.proofs) == {order.tag.session_id}
            assert second.links.handle(order.tag.lease_id) is None

    with running_keeper() as keeper, holder() as tenant:
        asyncio.run(story(keeper, tenant))


def test_a_keeper_that_is_not_there_fails_allocations_and_keeps_frees() -> None:
    """Allocations fail at once; a free waits for the keeper and is answered by it."""

    async def story(directory: Path) -> None:
        async with linked(outside(directory / "keeper.sock")) as node:
            order = order_for(SessionId(lease_id(7)))
            node.links.allocate(order)
            failed = await node.event(SlabAllocationFailed)
            assert failed.lease_id == order.tag.lease_id
            assert failed.message == "the keeper of SHM-0 can't be reached"
            node.links.free(free_of(order))
            node.links.free(free_of(order))
            keeper = Keeper(directory)
            try:
                await node.event(KeeperAttached)
                await node.event(SlabFreed)
                await node.event(GpuReported, after=len(node.events))
                assert [type(event) for event in node.events].count(SlabFreed) == 1
            finally:
                keeper.end()

    with short_directory() as directory:
        asyncio.run(story(directory))


def test_an_allocation_for_a_session_that_is_over_fails() -> None:
    """Without a proof of the holder nothing is asked of the keeper."""

    async def story(keeper: Keeper) -> None:
        async with linked(outside(keeper.socket)) as node:
            await node.event(KeeperAttached)
            node.links.allocate(order_for(SessionId(lease_id(7))))
            assert "is over" in (await node.event(SlabAllocationFailed)).message

    with running_keeper() as keeper:
        asyncio.run(story(keeper))


def test_what_a_keeper_refuses_comes_back_with_its_reason() -> None:
    """The figures of the keeper reach whoever asked."""

    async def story(keeper: Keeper, tenant: Holder) -> None:
        async with linked(outside(keeper.socket)) as node:
            await node.event(KeeperAttached)
            order = await granted(node, tenant)
            node.links.allocate(order)  # the same lease again
            failed = await node.event(SlabAllocationFailed)
            assert failed.message.startswith("ALREADY_EXISTS: ")

    with running_keeper() as keeper, holder() as tenant:
        asyncio.run(story(keeper, tenant))


def test_several_keepers_have_a_link_each() -> None:
    """One keeper's death is its own GPUs' trouble."""

    async def story(one: Keeper, other: Keeper, tenant: Holder) -> None:
        addresses = (outside(one.socket, SHM_0), outside(other.socket, SHM_1))
        async with linked(*addresses) as node:
            await node.until(lambda: len(attached_gpus(node)) == 2, what="both are attached")
            one.end()
            assert (await node.event(KeeperEnded)).gpus == (SHM_0,)
            session_id = node.holders.add_holder(tenant)
            node.links.allocate(order_for(session_id, gpu=SHM_1))
            await node.event(SlabAllocated)

    with running_keeper(gpus=1) as one, running_keeper(gpus=2) as other, holder() as tenant:
        asyncio.run(story(one, other, tenant))


def attached_gpus(node: Linked) -> set[GpuUuid]:
    events = [event for event in node.events if isinstance(event, KeeperAttached)]
    return {report.gpu for event in events for report in event.reports}
