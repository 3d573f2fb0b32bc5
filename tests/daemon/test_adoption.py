"""A new daemon and those that were there before it: proofs from keepers, sessions that come back."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from aqua_protos import broker_pb2, presence_pb2
from grpc import aio

from aqua_daemon.adapters.processes import read_start_ticks
from aqua_daemon.core.events import PresenceEnded, ProcessEnded, SentinelEnded
from aqua_daemon.core.model import (
    LeaseId,
    LeaseState,
    ProcessIdentity,
    RequestId,
    SafetyClass,
    SessionId,
    SlabTag,
    TenantName,
)
from tests.daemon.in_process import GPUS, MIB, Client, Node, greeted, new_id, running

SESSION = SessionId("5e" * 16)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Some other process than this one."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """A slab that an earlier daemon lent."""

    tag: SlabTag
    sentinel: socket.socket  # the holder's end

    @property
    def use(self) -> presence_pb2.LeaseUse:
        return presence_pb2.LeaseUse(lease_id=self.tag.lease_id)


def prove(node: Node, pid: int) -> Adopted:
    """What a keeper sends first: the proofs of whoever holds its slab."""
    ticks = read_start_ticks(pid)
    tag = SlabTag(
        lease_id=LeaseId(new_id()),
        session_id=SESSION,
        tenant=TenantName(f"uid-{os.getuid()}"),
        safety_class=SafetyClass.CACHE,
        lender=GPUS[1],
        borrower=None,
        nbytes=4 * MIB,
        holder=ProcessIdentity(pid=pid, start_ticks=ticks, uid=os.getuid()),
        request_id=RequestId(new_id()),
    )
    ours, theirs = socket.socketpair()
    node.holders.add(SESSION, pidfd=os.pidfd_open(pid), sentinel=ours.detach())
    node.keepers.slabs[tag.lease_id] = tag
    return Adopted(tag=tag, sentinel=theirs)


def adopt(node: Node, pid: int) -> Adopted:
    """The proofs, then the slab."""
    adopted = prove(node, pid)
    node.keepers.attach()
    return adopted


def lease_states(node: Node) -> list[LeaseState]:
    return [lease.state for lease in node.service.snapshot().leases]


def test_the_holder_of_an_adopted_slab_comes_back_to_it() -> None:
    """Its proofs came from the keeper: no new sentinel, the same session, a new token, no loss."""

    async def story() -> None:
        async with running(has_heard_keepers=False) as node:
            adopted = adopt(node, os.getpid())
            with adopted.sentinel:
                assert node.service.snapshot().restarting
                async with greeted(node, session_id=SESSION, leases=[adopted.use]) as client:
                    assert client.sentinel is None
                    assert not node.service.snapshot().restarting
                    frame = await client.keepalive(adopted.tag.lease_id)
                    assert not frame.keepalive_reply.ended_lease_ids
                    assert lease_states(node) == [LeaseState.LEASED]
                    assert (await client.acquire()).lease.session_id == SESSION

    asyncio.run(story())


def test_the_handle_of_an_adopted_slab_is_not_made_again() -> None:
    """A repeat of the earlier daemon's request says that its handle is gone and what to do."""

    async def story() -> None:
        async with running() as node:
            adopted = adopt(node, os.getpid())
            with adopted.sentinel:
                async with greeted(node, session_id=SESSION, leases=[adopted.use]) as client:
                    request = broker_pb2.AcquireRequest(
                        request_id=adopted.tag.request_id,
                        nbytes=4 * MIB,
                        safety_class=broker_pb2.SAFETY_CLASS_CACHE,
                    )
                    with pytest.raises(aio.AioRpcError, match="new request_id") as caught:
                        await client.call("Acquire", request)
                    assert caught.value.code().name == "ABORTED"
                    assert lease_states(node) == [LeaseState.LEASED]

    asyncio.run(story())


def test_the_end_of_an_adopted_holder_is_noticed(process: subprocess.Popen[bytes]) -> None:
    """It need not come back to be missed: the keeper's proofs tell, and the slab goes back."""

    async def story() -> None:
        async with running() as node:
            adopted = adopt(node, process.pid)
            process.kill()
            await node.wait_for(lambda: node.events(ProcessEnded), "no ProcessEnded")
            assert LeaseState.LEASED not in lease_states(node)
            assert adopted.tag.lease_id in node.keepers.slabs
            adopted.sentinel.close()
            await node.wait_for(lambda: node.events(SentinelEnded), "no SentinelEnded")
            assert lease_states(node) == []
            assert not node.keepers.slabs
            assert not node.holders.knows(SESSION)

    asyncio.run(story())


@pytest.mark.parametrize("is_attached", [False, True])
def test_nobody_takes_over_a_session_that_a_keeper_has_proofs_of(
    process: subprocess.Popen[bytes], *, is_attached: bool
) -> None:
    """Neither between a keeper's proofs and its report, nor after it."""

    async def story() -> None:
        async with running() as node, Client(node) as thief:
            adopted = prove(node, process.pid)
            if is_attached:
                node.keepers.attach()
            with adopted.sentinel:
                frame = await thief.hello(session_id=SESSION)
                assert frame.refusal.code == "PERMISSION_DENIED"
                assert "session of your own" in frame.refusal.message
                node.keepers.attach()
                pidfd, _ = node.holders.descriptors(SESSION)
                process.kill()
                await node.wait_for(lambda: node.events(ProcessEnded), "the proofs were lost")
                assert os.fstat(pidfd)

    asyncio.run(story())


def test_who_took_a_session_before_the_keeper_was_heard_loses_it(
    process: subprocess.Popen[bytes],
) -> None:
    """The keeper's word decides: the thief's connection ends, the owner's proofs stay."""

    async def story() -> None:
        async with running() as node, greeted(node, session_id=SESSION) as thief:
            adopted = adopt(node, process.pid)
            with adopted.sentinel:
                assert node.presence.session_of(thief.token) is None
                assert lease_states(node) == [LeaseState.LEASED]
                (session,) = node.service.snapshot().sessions
                assert session.process.pid == process.pid
                process.kill()
                await node.wait_for(lambda: node.events(ProcessEnded), "the proofs were lost")
            await node.wait_for(lambda: not node.keepers.slabs, "the slab did not come back")
            assert not node.service.faults

    asyncio.run(story())


def test_a_sentinel_from_the_keeper_counts_beside_one_made_here() -> None:
    """A holder that came back before its keeper was heard has two, and both must end."""

    async def story() -> None:
        async with running() as node, greeted(node, session_id=SESSION) as client:
            assert client.sentinel is not None
            adopted = adopt(node, os.getpid())
            client.leave()
            await node.wait_for(lambda: node.events(PresenceEnded), "no PresenceEnded")
            assert not node.events(SentinelEnded)
            adopted.sentinel.close()
            await node.wait_for(lambda: node.events(SentinelEnded), "no SentinelEnded")

    asyncio.run(story())


def test_a_daemon_that_leaves_takes_nobody_new() -> None:
    """After the announcement no hello is answered; those who are there may go on calling."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            node.presence.announce_restart()
            node.presence._acceptor._accept_again()  # as after a pause for want of descriptors
            assert (await client.receive()).HasField("restarting")
            async with Client(node) as late:
                await late.send(b"")
                await client.acquire()
                with pytest.raises(BlockingIOError):
                    late.reader.read_from(late.connection)

    asyncio.run(story())


def test_want_of_descriptors_is_a_pause_and_no_end() -> None:
    """A daemon that can't accept looks away for a moment, then takes who waits."""

    class Full(socket.socket):
        looks, ends_at = 0, float("inf")

        def accept(self) -> tuple[socket.socket, object]:
            if not Full.looks:
                Full.ends_at = time.monotonic() + 0.25
            if time.monotonic() < Full.ends_at:
                Full.looks += 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    async def story() -> None:
        async with running() as node:
            whole = node.presence._acceptor._listener
            full = Full(whole.family, whole.type, fileno=os.dup(whole.fileno()))
            asyncio.get_running_loop().remove_reader(whole)
            node.presence._acceptor._listener = full
            whole.close()
            node.presence.start()
            async with greeted(node) as client:
                assert client.token
            assert 1 <= Full.looks <= 3, "one each 0.1 s: the loop has others to see to"

    asyncio.run(story())
