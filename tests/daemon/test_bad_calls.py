"""Bad calls: the right status, a message that helps, and books as they were.

Each row is sent to a node that holds a live lease, over its real sockets. The books are compared
whole, before and after. Bad frames of the presence socket are in test_bad_frames.
"""

from __future__ import annotations

import asyncio

import pytest
from aqua_protos import broker_pb2
from grpc import aio

from aqua_daemon.adapters.grpc_health import HEALTH_SERVICE
from aqua_daemon.adapters.grpc_servicer import SERVICE
from tests.daemon.bad_requests import (
    BAD_CALLS,
    ID,
    METHODS,
    NOT_UTF8,
    TRUNCATED,
    BadCall,
    acquire,
    reserving,
    returning,
)
from tests.daemon.in_process import MIB, Client, greeted, lease_of, new_id, running


@pytest.mark.parametrize("bad", BAD_CALLS, ids=lambda bad: bad.label)
def test_a_bad_call_gets_its_status_and_changes_nothing(bad: BadCall) -> None:
    """The status says whose fault it was, the message what to do; the books are as before."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            await client.acquire()
            before = node.service.snapshot()
            with pytest.raises(aio.AioRpcError) as caught:
                await client.call(bad.name, bad.payload)
            assert caught.value.code().name == bad.status
            assert bad.says in (caught.value.details() or "")
            assert node.service.snapshot() == before
            assert not node.service.faults
            node.broker.check_integrity()

    asyncio.run(story())


@pytest.mark.parametrize("token", [b"", b"short", bytes(32), bytes(4096)], ids=len)
@pytest.mark.parametrize("name", [*METHODS, "GetState"])
def test_a_call_without_a_live_token_changes_nothing(name: str, token: bytes) -> None:
    """A missing, short, foreign or oversized token is UNAUTHENTICATED, before anything is read."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            await client.acquire()
            before = node.service.snapshot()
            with pytest.raises(aio.AioRpcError, match="say hello on the presence socket") as caught:
                await client.call(name, TRUNCATED, token=token)
            assert caught.value.code().name == "UNAUTHENTICATED"
            assert node.service.snapshot() == before

    asyncio.run(story())


def test_the_token_of_a_displaced_connection_is_dead() -> None:
    """After a re-attach only the new token is good; the calls of the old one have no effect."""

    async def story() -> None:
        async with (
            running() as node,
            greeted(node) as first,
            greeted(node, session_id=first.session_id) as second,
        ):
            before = node.service.snapshot()
            with pytest.raises(aio.AioRpcError) as caught:
                await first.call("Acquire", acquire())
            assert caught.value.code().name == "UNAUTHENTICATED"
            assert node.service.snapshot() == before
            assert (await second.acquire()).lease.nbytes == 4 * MIB

    asyncio.run(story())


@pytest.mark.parametrize("name", ["Release", "Acknowledge"])
def test_leases_that_ended_are_unknown_and_nothing_changes(name: str) -> None:
    """A call with an ended or a made-up lease id says so and has no effect."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            kept = lease_of(await client.acquire())
            ended = lease_of(await client.acquire())
            await client.call("Release", returning(ended, request_id=new_id()))
            before = node.service.snapshot()
            request = returning(ended, ID, request_id=new_id())
            reply = broker_pb2.ReturnReply.FromString(await client.call(name, request))
            assert list(reply.unknown_lease_ids) == [ended, ID]
            assert not reply.returned_lease_ids
            assert node.service.snapshot() == before
            assert [lease.lease_id for lease in before.leases] == [kept]

    asyncio.run(story())


def test_an_id_that_was_used_for_another_call_is_refused() -> None:
    """One request id names one call; the second of another kind has no effect."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            await client.call("Acquire", acquire())
            before = node.service.snapshot()
            with pytest.raises(aio.AioRpcError, match="new id") as caught:
                await client.call("ReserveHost", reserving(1, MIB))
            assert caught.value.code().name == "INVALID_ARGUMENT"
            await client.call("Release", returning(ID, request_id="0b" * 16))
            with pytest.raises(aio.AioRpcError, match="new id"):
                await client.call("ReserveHost", reserving(1, 0, request_id="0b" * 16))
            assert node.service.snapshot() == before

    asyncio.run(story())


@pytest.mark.parametrize("payload", [TRUNCATED, NOT_UTF8], ids=["truncated", "not text"])
def test_a_bad_health_check_is_refused(payload: bytes) -> None:
    """Health needs no token, but a message."""

    async def story() -> None:
        async with running() as node, Client(node) as client:
            with pytest.raises(aio.AioRpcError, match="HealthCheckRequest") as caught:
                await client.call("Check", payload, service=HEALTH_SERVICE)
            assert caught.value.code().name == "INVALID_ARGUMENT"
            assert SERVICE not in (caught.value.details() or "")

    asyncio.run(story())
