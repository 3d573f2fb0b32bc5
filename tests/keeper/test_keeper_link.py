"""The daemon's links over real keepers that are killed, stopped and started, and over a bad one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from aqua_protos.keeper_pb2 import Attached, Failed, KeeperReply

from aqua_daemon.adapters import keeper_connection, keeper_link
from aqua_daemon.adapters.keeper_link import KeeperAddress, KeeperLinks
from aqua_daemon.adapters.keeper_processes import KeeperProcess, shm_keeper_command
from aqua_daemon.core.events import (
    Event,
    GpuReported,
    KeeperAttached,
    KeeperDetached,
    KeeperEnded,
    SlabAllocated,
    SlabAllocationFailed,
    SlabFreed,
)
from aqua_daemon.core.instructions import AllocateSlab, FreeSlab
from aqua_daemon.core.model import (
    GpuUuid,
    LeaseId,
    ProcessIdentity,
    RequestId,
    SafetyClass,
    SessionId,
    SlabTag,
    TenantName,
)
from tests.fakes.keeper_server import FakeKeeper, fake_keeper, report_of
from tests.keeper.keepers import (
    GPU_BYTES,
    SLAB_BYTES,
    Holder,
    Keeper,
    holder,
    lease_id,
    running_keeper,
)
from tests.nodes import REPOSITORY, short_directory

SHM_0, SHM_1 = GpuUuid("SHM-0"), GpuUuid("SHM-1")
SECONDS = 20.0
_E = TypeVar("_E", bound=Event)


class FakeHolders:
    """Owns the proofs that it is given, as `Holders` does."""

    def __init__(self) -> None:
        self.proofs: dict[SessionId, tuple[int, int]] = {}

    def add(self, session_id: SessionId, *, pidfd: int, sentinel: int) -> None:
        if session_id in self.proofs:
            os.close(pidfd)
            os.close(sentinel)
        else:
            self.proofs[session_id] = (pidfd, sentinel)

    def add_holder(self, tenant: Holder) -> SessionId:
        session_id = SessionId(tenant.session_id)
        sentinel = os.dup(tenant.sentinel.fileno())
        self.add(session_id, pidfd=os.dup(tenant.pidfd), sentinel=sentinel)
        return session_id

    def descriptors(self, session_id: SessionId) -> tuple[int, int]:
        return self.proofs[session_id]

    def close(self) -> None:
        for descriptor in (fd for both in self.proofs.values() for fd in both):
            os.close(descriptor)


class Linked:
    """Links under test, and every event that they submitted."""

    def __init__(self, *addresses: KeeperAddress) -> None:
        self.holders = FakeHolders()
        self.events: list[Event] = []
        self._told = asyncio.Event()
        self.links = KeeperLinks(
            addresses, submit=self.submit, holders=self.holders, daemon_version="test"
        )

    def submit(self, event: Event) -> None:
        self.events.append(event)
        self._told.set()

    async def until(self, condition: Callable[[], object], *, what: str) -> None:
        """Let events come in until *condition* holds."""
        try:
            async with asyncio.timeout(SECONDS):
                while not condition():
                    self._told.clear()
                    await self._told.wait()
        except TimeoutError:
            raise AssertionError(f"not within {SECONDS:g} s: {what}") from None

    async def event(self, kind: type[_E], *, after: int = 0) -> _E:
        """The first event of that kind past position *after*, once it is there."""
        found: list[_E] = []

        def look() -> bool:
            found[:] = [event for event in self.events[after:] if isinstance(event, kind)]
            return bool(found)

        await self.until(look, what=f"{kind.__name__} in {self.events[after:]}")
        return found[0]


@contextlib.asynccontextmanager
async def linked(*addresses: KeeperAddress) -> AsyncIterator[Linked]:
    node = Linked(*addresses)
    node.links.start()
    try:
        yield node
    finally:
        await node.links.close()
        await node.links.close()  # twice is once
        node.holders.close()


def outside(path: Path, *gpus: GpuUuid) -> KeeperAddress:
    """A keeper that somebody else starts."""
    return KeeperAddress(socket_path=path, gpus=gpus or (SHM_0, SHM_1))


def spawned(directory: Path) -> KeeperAddress:
    """A keeper that the links start."""
    path = directory / "spawned.sock"
    command = list(shm_keeper_command(gpus=2, gpu_bytes=GPU_BYTES, socket_path=path))
    assert command[:4] == [sys.executable, "-m", "aqua_daemon", "keeper"]
    setup = f"import sys; sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / 'protos')!r}];"
    program = f"{setup} from aqua_daemon.cli import main; sys.exit(main(sys.argv[1:]))"
    process = KeeperProcess(
        [sys.executable, "-c", program, *command[3:]], log_path=directory / "spawned.log"
    )
    return KeeperAddress(socket_path=path, gpus=(SHM_0, SHM_1), process=process)


def order_for(session_id: SessionId, lease: int = 1, gpu: GpuUuid = SHM_0) -> AllocateSlab:
    holder_of = ProcessIdentity(pid=int(session_id, 16), start_ticks=5, uid=os.getuid())
    return AllocateSlab(
        tag=SlabTag(
            lease_id=LeaseId(lease_id(lease)),
            session_id=session_id,
            tenant=TenantName("uid-0"),
            safety_class=SafetyClass.CACHE,
            lender=gpu,
            borrower=SHM_1,
            nbytes=SLAB_BYTES,
            holder=holder_of,
            request_id=RequestId(lease_id(lease + 1000)),
        )
    )


async def granted(node: Linked, tenant: Holder, lease: int = 1) -> AllocateSlab:
    order = order_for(node.holders.add_holder(tenant), lease)
    after = len(node.events)
    node.links.allocate(order)
    assert (await node.event(SlabAllocated, after=after)).lease_id == order.tag.lease_id
    return order


def free_of(order: AllocateSlab) -> FreeSlab:
    return FreeSlab(gpu=order.tag.lender, lease_id=order.tag.lease_id)


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


def test_a_killed_keeper_has_ended_and_took_its_slabs() -> None:
    """KeeperEnded, never KeeperDetached; its handles and frees are dropped; the next one attaches."""

    async def story(keeper: Keeper, tenant: Holder) -> None:
        async with linked(outside(keeper.socket)) as node:
            await node.event(KeeperAttached)
            order = await granted(node, tenant)
            after = len(node.events)
            keeper.end()
            assert (await node.event(KeeperEnded, after=after)).gpus == (SHM_0, SHM_1)
            assert node.links.handle(order.tag.lease_id) is None
            node.links.allocate(order)
            await node.event(SlabAllocationFailed, after=after)
            follower = Keeper(keeper.socket.parent)
            try:
                assert (await node.event(KeeperAttached, after=after)).slabs == ()
                kinds = {type(event) for event in node.events}
                assert KeeperDetached not in kinds
                assert SlabFreed not in kinds
            finally:
                follower.end()

    with running_keeper() as keeper, holder() as tenant:
        asyncio.run(story(keeper, tenant))


def test_a_spawned_keeper_is_adopted_and_replaced() -> None:
    """It outlives the links that started it, the next ones adopt it, and start another if it dies."""

    async def story(directory: Path, tenant: Holder, pids: list[int]) -> None:
        async with linked(spawned(directory)) as first:
            await first.event(KeeperAttached)
            order = await granted(first, tenant)
            pids.append(keeper_pid(first, order))
            assert os.getsid(pids[0]) == pids[0]
        async with linked(spawned(directory)) as second:
            attached = await second.event(KeeperAttached)
            assert attached.slabs == (order.tag,)
            os.kill(pids[0], signal.SIGKILL)
            await second.event(KeeperEnded)
            after = len(second.events)
            assert (await second.event(KeeperAttached, after=after)).slabs == ()
            pids.append(keeper_pid(second, await granted(second, tenant, lease=2)))
            assert pids[1] != pids[0]

    pids: list[int] = []
    with short_directory() as directory, holder() as tenant:
        try:
            asyncio.run(story(directory, tenant, pids))
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)


def keeper_pid(node: Linked, order: AllocateSlab) -> int:
    handle = node.links.handle(order.tag.lease_id)
    assert handle is not None
    return handle.keeper_pid


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


def test_a_stopped_keeper_is_detached_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs is not waited for and not given up: continued, it has what it had."""
    monkeypatch.setattr(keeper_connection, "SILENCE_SECONDS", 3.0)
    monkeypatch.setattr(keeper_link, "ATTACH_SECONDS", 0.2)

    async def story(keeper: Keeper, tenant: Holder) -> None:
        async with linked(outside(keeper.socket)) as node:
            await node.event(KeeperAttached)
            order = await granted(node, tenant)
            keeper.signal(signal.SIGSTOP)
            node.links.allocate(order_for(order.tag.session_id, lease=2))
            assert "has said nothing" in (await node.event(SlabAllocationFailed)).message
            await node.event(KeeperDetached)
            after = len(node.events)
            monkeypatch.setattr(keeper_link, "ATTACH_SECONDS", SECONDS)
            keeper.signal(signal.SIGCONT)
            attached = await node.event(KeeperAttached, after=after)
            assert order.tag in attached.slabs
            assert KeeperEnded not in {type(event) for event in node.events}

    with running_keeper() as keeper, holder() as tenant:
        asyncio.run(story(keeper, tenant))
