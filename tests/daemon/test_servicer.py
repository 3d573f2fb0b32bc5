"""The API's server itself: tokens, reasons, health, and a fault of the daemon."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from aqua_protos import health_pb2
from grpc import aio

from aqua_daemon.adapters.grpc_health import HEALTH_SERVICE
from aqua_daemon.adapters.grpc_servicer import REASON_KEY, SERVICE, TOKEN_KEY
from aqua_daemon.core.events import PresenceEnded, SessionOpened
from tests.daemon.api_calls import reason_of, state
from tests.daemon.in_process import Client, greeted, running


def test_a_missing_foreign_or_dead_token_is_unauthenticated() -> None:
    """Each says what to do, and no call but health is served."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            async with greeted(node) as gone:
                dead = gone.token
            await node.wait_for(lambda: node.events(PresenceEnded), "no PresenceEnded")
            for token in (b"", b"x", bytes(32), dead):
                for name in ("Acquire", "Release", "GetState", "Reclaim"):
                    with pytest.raises(aio.AioRpcError, match="say hello") as caught:
                        await client.call(name, b"", token=token)
                    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
                    assert reason_of(caught.value) == "unauthenticated"

    asyncio.run(story())


def test_every_reply_carries_its_reason() -> None:
    """`ok` for what was done."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            method: aio.UnaryUnaryMultiCallable[bytes, bytes] = client.channel.unary_unary(
                f"/{SERVICE}/GetState"
            )
            call = method(b"", metadata=((TOKEN_KEY, client.token),))
            await call
            assert (REASON_KEY, "ok") in [
                (key, value) for key, value in await call.trailing_metadata() or ()
            ]

    asyncio.run(story())


def test_health_says_whether_the_daemon_serves() -> None:
    """It needs no token, and knows which services there are."""

    async def story() -> None:
        async with running() as node, Client(node) as client:
            for service in ("", SERVICE):
                request = health_pb2.HealthCheckRequest(service=service)
                reply = await client.call("Check", request, service=HEALTH_SERVICE)
                status = health_pb2.HealthCheckResponse.FromString(reply).status
                assert status == health_pb2.HealthCheckResponse.SERVING
            node.health.is_serving = False
            reply = await client.call("Check", b"", service=HEALTH_SERVICE)
            status = health_pb2.HealthCheckResponse.FromString(reply).status
            assert status == health_pb2.HealthCheckResponse.NOT_SERVING
            request = health_pb2.HealthCheckRequest(service="other")
            with pytest.raises(aio.AioRpcError, match="ask about") as caught:
                await client.call("Check", request, service=HEALTH_SERVICE)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert not node.events(SessionOpened)

    asyncio.run(story())


def test_a_fault_of_the_daemon_is_internal_and_the_next_call_is_served() -> None:
    """An exception that nobody expected ends one call, not the server."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            recent = node.service.snapshot
            node.service.snapshot = lambda: 1 // 0  # type: ignore[assignment, method-assign, return-value]  # a fault
            with pytest.raises(aio.AioRpcError, match="see its log") as caught:
                await state(client)
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            assert reason_of(caught.value) == "bug"
            node.service.snapshot = recent  # type: ignore[method-assign]  # as it was
            assert (await state(client)).sessions == 1

    asyncio.run(story())
