"""The daemon's links over keepers that break off, talk nonsense, refuse, or are older."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aqua_protos.keeper_pb2 import Attached, Failed, Freed, KeeperReply

from aqua_daemon.core.events import (
    GpuReported,
    KeeperAttached,
    KeeperDetached,
    SlabAllocationFailed,
    SlabFreed,
)
from aqua_daemon.core.instructions import FreeSlab
from aqua_daemon.core.model import LeaseId
from tests.fakes.keeper_server import FakeKeeper, fake_keeper, report_of
from tests.keeper.holders import Holder, holder, lease_id
from tests.keeper.keepers import GPU_BYTES
from tests.keeper.links import SHM_0, linked, order_for, outside
from tests.nodes import short_directory


def test_a_broken_link_to_a_living_keeper_is_detached_and_mended() -> None:
    """What had no answer fails (allocations) or is sent again (frees)."""

    async def story(path: Path, tenant: Holder) -> None:
        async with fake_keeper(path) as keeper, linked(outside(path, SHM_0)) as node:
            await keeper.accept_attach(report_of("SHM-0", GPU_BYTES))
            await node.event(KeeperAttached)
            order = order_for(node.holders.add_holder(tenant))
            node.links.allocate(order)
            node.links.free(FreeSlab(gpu=SHM_0, lease_id=LeaseId(lease_id(2))))
            await keeper.request("allocate")
            await keeper.request("free")
            keeper.hang_up()
            assert (
                "the link to the keeper broke" in (await node.event(SlabAllocationFailed)).message
            )
            assert (await node.event(KeeperDetached)).gpus == (SHM_0,)
            after = len(node.events)
            await keeper.accept_attach(report_of("SHM-0", GPU_BYTES))
            await node.event(KeeperAttached, after=after)
            assert (await keeper.request("free")).free.lease_id == lease_id(2)

    with short_directory() as directory, holder() as tenant:
        asyncio.run(story(directory / "keeper.sock", tenant))


def test_a_keeper_that_talks_nonsense_is_left_and_tried_again() -> None:
    """Frames that can't be understood end the link, not the daemon."""

    async def story(path: Path) -> None:
        async with fake_keeper(path) as keeper, linked(outside(path, SHM_0)) as node:
            for say in (
                say_no_message,
                say_a_slab_nobody_wants,
                refuse_to_attach,
                say_no_proof,
                speak_of_the_future,
            ):
                after = len(node.events)
                if say in {refuse_to_attach, say_no_proof, speak_of_the_future}:
                    request = await keeper.request("attach")
                    await say(keeper, request.request_id)
                    continue
                await keeper.accept_attach(report_of("SHM-0", GPU_BYTES))
                await node.event(KeeperAttached, after=after)
                await say(keeper, 1)
                await node.event(KeeperDetached, after=after)
            after = len(node.events)
            await keeper.accept_attach(report_of("SHM-0", GPU_BYTES))
            await node.event(KeeperAttached, after=after)

    with short_directory() as directory:
        asyncio.run(story(directory / "keeper.sock"))


async def say_no_message(keeper: FakeKeeper, _request_id: int) -> None:
    keeper.say_bytes(b"\xff\xff")


async def say_a_slab_nobody_wants(keeper: FakeKeeper, _request_id: int) -> None:
    reply = KeeperReply(request_id=99)
    reply.allocated.lease_id = lease_id(3)
    keeper.say(reply, (0,))


async def speak_of_the_future(keeper: FakeKeeper, request_id: int) -> None:
    keeper.say(KeeperReply(request_id=request_id, attached=Attached(protocol=99)))


async def refuse_to_attach(keeper: FakeKeeper, request_id: int) -> None:
    keeper.say(KeeperReply(request_id=request_id, failed=Failed(code="INTERNAL", message="no")))


async def say_no_proof(keeper: FakeKeeper, request_id: int) -> None:
    reply = KeeperReply(request_id=request_id)
    reply.holder_proof.session_id = lease_id(4)  # without its descriptors
    keeper.say(reply)


def test_a_keeper_of_the_release_before_is_used_and_named() -> None:
    """Every report of its GPUs carries the warning, the first and the later ones."""

    async def story(path: Path) -> None:
        async with fake_keeper(path) as keeper, linked(outside(path, SHM_0)) as node:
            await keeper.accept_attach(report_of("SHM-0", GPU_BYTES))
            (report,) = (await node.event(KeeperAttached)).reports
            assert "its keeper is of release 0.1.0, this daemon of test" in report.warnings[0]
            keeper.say(KeeperReply(gpu_report=report_of("SHM-0", GPU_BYTES)))
            assert (await node.event(GpuReported)).report.warnings == report.warnings

    with short_directory() as directory:
        asyncio.run(story(directory / "keeper.sock"))


def test_a_free_that_is_refused_is_not_forgotten() -> None:
    """The bytes are still there: it is asked again at the next attach."""

    async def story(path: Path) -> None:
        async with fake_keeper(path) as keeper, linked(outside(path, SHM_0)) as node:
            await keeper.accept_attach(report_of("SHM-0", GPU_BYTES))
            await node.event(KeeperAttached)
            node.links.free(FreeSlab(gpu=SHM_0, lease_id=LeaseId(lease_id(2))))
            request = await keeper.request("free")
            failed = Failed(code="INTERNAL", message="no")
            keeper.say(KeeperReply(request_id=request.request_id, failed=failed))
            keeper.say_bytes(b"\xff\xff")
            await node.event(KeeperDetached)
            await keeper.accept_attach(report_of("SHM-0", GPU_BYTES))
            assert (await keeper.request("free")).free.lease_id == lease_id(2)
            assert not [event for event in node.events if isinstance(event, SlabFreed)]

    with short_directory() as directory:
        asyncio.run(story(directory / "keeper.sock"))


def test_a_free_that_is_refused_is_asked_for_again_while_the_link_holds() -> None:
    """A driver that failed once must not keep the bytes from their owner for ever."""

    async def story(path: Path) -> None:
        async with fake_keeper(path) as keeper, linked(outside(path, SHM_0)) as node:
            await keeper.accept_attach(report_of("SHM-0", GPU_BYTES))
            await node.event(KeeperAttached)
            node.links.free(FreeSlab(gpu=SHM_0, lease_id=LeaseId(lease_id(2))))
            request = await keeper.request("free")
            failed = Failed(code="INTERNAL", message="no")
            keeper.say(KeeperReply(request_id=request.request_id, failed=failed))
            again = await keeper.request("free")
            assert again.free == request.free
            freed = Freed(lease_id=lease_id(2), scrubbed_bytes=1)
            keeper.say(KeeperReply(request_id=again.request_id, freed=freed))
            await node.event(SlabFreed)

    with short_directory() as directory:
        asyncio.run(story(directory / "keeper.sock"))
