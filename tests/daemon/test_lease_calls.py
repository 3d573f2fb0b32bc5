"""Leases, host room and producers over a real gRPC server."""

from __future__ import annotations

import asyncio
import os

import grpc
import pytest
from aqua_protos import broker_pb2
from grpc import aio

from aqua_daemon.core.model import LeaseState
from tests.daemon.api_calls import acquire_request, reason_of
from tests.daemon.in_process import GPUS, MIB, greeted, lease_of, new_id, running
from tests.fakes.keepers import CANARY, KEEPER_PID


def test_a_lease_comes_with_its_descriptor_and_canary() -> None:
    """The frame with the slab's memory is there when the reply is; the memory begins as said."""

    async def story() -> None:
        async with running() as node, greeted(node, home_gpu="SHM-0") as client:
            reply = await client.acquire(8 * MIB)
            assert reply.lease.lender_gpu == "SHM-1"
            assert reply.lease.borrower_gpu == "SHM-0"
            assert reply.lease.nbytes == 8 * MIB
            assert reply.lease.state == broker_pb2.LEASE_STATE_LEASED
            assert reply.lease.pid == os.getpid()
            assert reply.handle.keeper_pid == KEEPER_PID
            assert reply.handle.WhichOneof("kind") == "descriptor"
            frame = await client.receive()
            assert frame.slab_descriptor.lease_id == reply.lease.lease_id
            (memory,) = client.reader.take_descriptors(1)
            assert os.pread(memory, 64, 0) == CANARY == reply.handle.canary
            os.close(memory)

    asyncio.run(story())


def test_a_slab_that_can_not_be_sent_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its presence link is full, or the daemon out of descriptors: no reply whose slab never comes."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            monkeypatch.setattr(node.presence, "send_descriptor", lambda *_: False)
            with pytest.raises(aio.AioRpcError, match="ask again with the same") as caught:
                await client.call("Acquire", acquire_request())
            assert reason_of(caught.value) == "suspect"

    asyncio.run(story())


def test_a_cuda_handle_comes_in_the_reply() -> None:
    """No frame is sent for it."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            node.keepers.makes_cuda = True
            reply = await client.acquire()
            assert len(reply.handle.cuda_ipc.handle) == 64
            assert (await client.keepalive(reply.lease.lease_id)).HasField("keepalive_reply")

    asyncio.run(story())


def test_a_repeated_acquire_gets_the_same_lease_and_its_descriptor_again() -> None:
    """A lost reply costs nothing, until the client has said that it has the lease."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            request = acquire_request()
            first = broker_pb2.AcquireReply.FromString(await client.call("Acquire", request))
            second = broker_pb2.AcquireReply.FromString(await client.call("Acquire", request))
            assert lease_of(first) == lease_of(second)
            assert len(node.service.snapshot().leases) == 1
            for _ in range(2):
                assert (await client.receive()).slab_descriptor.lease_id == lease_of(first)
            await client.keepalive(lease_of(first))
            with pytest.raises(aio.AioRpcError, match="new request_id") as caught:
                await client.call("Acquire", request)
            assert caught.value.code() is grpc.StatusCode.ABORTED

    asyncio.run(story())


def test_acquire_waits_no_longer_than_its_caller_and_goes_on() -> None:
    """With a keeper that is stuck the caller's deadline ends the wait; a repeat gets the lease."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            node.keepers.is_stuck = True
            request = acquire_request()
            with pytest.raises(aio.AioRpcError) as caught:
                await client.call("Acquire", request, timeout=0.1)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            again = asyncio.create_task(client.call("Acquire", request))
            node.keepers.answer()
            assert broker_pb2.AcquireReply.FromString(await again).lease.nbytes == 4 * MIB
            assert len(node.keepers.orders) == 1

    asyncio.run(story())


def test_a_keeper_without_room_is_an_error_with_its_words() -> None:
    """RESOURCE_EXHAUSTED, reason no_room, and what the keeper said."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            node.keepers.is_full = True
            with pytest.raises(aio.AioRpcError, match="out of memory") as caught:
                await client.acquire()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert reason_of(caught.value) == "no_room"

    asyncio.run(story())


def test_leases_are_given_back_and_acknowledged() -> None:
    """Both calls say lease by lease what they did; the keeper is told to free."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            leases = [lease_of(await client.acquire()) for _ in range(2)]
            stale = new_id()
            for name, lease_id in zip(("Release", "Acknowledge"), leases, strict=True):
                request = broker_pb2.ReturnRequest(request_id=new_id(), lease_ids=[lease_id, stale])
                reply = broker_pb2.ReturnReply.FromString(await client.call(name, request))
                assert list(reply.returned_lease_ids) == [lease_id]
                assert list(reply.unknown_lease_ids) == [stale]
            assert not node.keepers.slabs
            assert not node.service.snapshot().leases

    asyncio.run(story())


def test_leases_of_another_session_cannot_be_returned() -> None:
    """They are unknown to whoever is not their holder, and stay."""

    async def story() -> None:
        async with running() as node, greeted(node) as owner, greeted(node) as other:
            lease_id = lease_of(await owner.acquire())
            request = broker_pb2.ReturnRequest(request_id=new_id(), lease_ids=[lease_id])
            reply = broker_pb2.ReturnReply.FromString(await other.call("Release", request))
            assert list(reply.unknown_lease_ids) == [lease_id]
            (lease,) = node.service.snapshot().leases
            assert lease.state is LeaseState.LEASED

    asyncio.run(story())


def test_host_room_is_reserved_by_revision() -> None:
    """The reply says what is in force; what does not fit is refused with the figures."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            room = broker_pb2.HostRoom(revision=1, nbytes=10 * MIB)
            request = broker_pb2.ReserveHostRequest(request_id=new_id(), host_room=room)
            reply = await client.call("ReserveHost", request)
            assert broker_pb2.ReserveHostReply.FromString(reply).host_room == room
            assert node.service.snapshot().host_reserved_bytes == 10 * MIB
            room = broker_pb2.HostRoom(revision=2, nbytes=1000 * MIB)
            request = broker_pb2.ReserveHostRequest(request_id=new_id(), host_room=room)
            with pytest.raises(aio.AioRpcError, match="MiB") as caught:
                await client.call("ReserveHost", request)
            assert reason_of(caught.value) == "no_host_room"

    asyncio.run(story())


def test_a_producer_lends_and_gets_its_memory_back() -> None:
    """A process of the GPU sets its limit; its reclaim ends when the bytes are free."""

    async def story() -> None:
        async with running() as node, greeted(node, home_gpu="SHM-0") as client:
            offer = broker_pb2.OfferRequest(request_id=new_id(), gpu="SHM-1", nbytes=16 * MIB)
            with pytest.raises(aio.AioRpcError) as caught:
                await client.call("Offer", offer)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            node.keepers.own(GPUS[1], pid=os.getpid(), nbytes=MIB)
            offer.request_id = new_id()
            offered = broker_pb2.OfferReply.FromString(await client.call("Offer", offer))
            assert (offered.offered_bytes, offered.lent_bytes) == (16 * MIB, 0)
            lease_id = lease_of(await client.acquire())
            await client.receive()
            reclaim = broker_pb2.ReclaimRequest(request_id=new_id(), gpu="SHM-1", nbytes=MIB)
            pending = asyncio.create_task(client.call("Reclaim", reclaim))
            frame = await client.receive()
            assert list(frame.revoke.lease_ids) == [lease_id]
            assert not pending.done()
            given = broker_pb2.ReturnRequest(request_id=new_id(), lease_ids=[lease_id])
            await client.call("Acknowledge", given)
            reply = broker_pb2.ReclaimReply.FromString(await pending)
            assert (reply.asked_bytes, reply.freed_bytes) == (MIB, 4 * MIB)

    asyncio.run(story())
