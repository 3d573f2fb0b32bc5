"""Calls that come as frames of the presence link: answered as over gRPC, and held to the same limits."""

from __future__ import annotations

import asyncio
import os

import pytest
from aqua_protos import broker_pb2, presence_pb2
from google.protobuf.message import Message

from aqua_daemon.adapters import framed_calls
from aqua_daemon.adapters.call_limits import CallLimits
from aqua_daemon.adapters.presence_link import PresenceLimits
from aqua_daemon.adapters.wire import frames
from aqua_daemon.core.errors import InvalidRequest
from tests.daemon.in_process import MIB, Client, greeted, new_id, running


def call(number: int, method: str, request: Message, seconds: float = 5.0) -> bytes:
    message = presence_pb2.Call(
        number=number, method=method, payload=request.SerializeToString(), seconds=seconds
    )
    return presence_pb2.ClientFrame(call=message).SerializeToString()


def acquire(nbytes: int = 4 * MIB) -> broker_pb2.AcquireRequest:
    return broker_pb2.AcquireRequest(
        request_id=new_id(), nbytes=nbytes, safety_class=broker_pb2.SAFETY_CLASS_CACHE
    )


async def reply_to(client: Client, number: int) -> presence_pb2.CallReply:
    frame = await client.receive()
    assert frame.HasField("call_reply"), frame
    assert frame.call_reply.number == number
    return frame.call_reply


def test_a_slab_comes_with_its_descriptor_before_the_reply() -> None:
    """And goes back by the same way."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            await client.send(call(1, "Acquire", acquire()))
            slab = await client.receive()
            (descriptor,) = client.reader.take_descriptors(1)
            os.close(descriptor)
            granted = broker_pb2.AcquireReply.FromString((await reply_to(client, 1)).payload)
            assert slab.slab_descriptor.lease_id == granted.lease.lease_id
            back = broker_pb2.ReturnRequest(request_id=new_id(), lease_ids=[granted.lease.lease_id])
            await client.send(call(2, "Release", back))
            returned = broker_pb2.ReturnReply.FromString((await reply_to(client, 2)).payload)
            assert list(returned.returned_lease_ids) == [granted.lease.lease_id]

    asyncio.run(story())


def test_a_refused_slab_comes_with_the_size_that_may_be_had() -> None:
    """So that who wants less may ask for it at once, and who can't use it need not ask again."""

    async def story() -> None:
        async with running() as node, greeted(node, home_gpu="SHM-0") as client:
            for number in range(1, 8):  # six of 32 MiB are all that fit above the reserve
                await client.send(call(number, "Acquire", acquire(32 * MIB)))
                frame = await client.receive()
                if frame.HasField("call_reply"):
                    break
                (descriptor,) = client.reader.take_descriptors(1)
                os.close(descriptor)
                await reply_to(client, number)
            refusal = frame.call_reply.refusal
            assert (refusal.reason, refusal.largest_bytes) == ("no_room", 24 * MIB)
            await client.send(call(9, "Acquire", acquire(refusal.largest_bytes)))
            assert (await client.receive()).HasField("slab_descriptor")

    asyncio.run(story())


@pytest.mark.parametrize(
    ("method", "request_", "code", "reason"),
    [
        ("Acquire", acquire(3), "INVALID_ARGUMENT", "invalid"),
        ("Acquire", acquire(2**40), "INVALID_ARGUMENT", "invalid"),
        ("GetQuotas", broker_pb2.GetQuotasRequest(), "INVALID_ARGUMENT", "invalid"),
        ("Nonsense", broker_pb2.GetStateRequest(), "INVALID_ARGUMENT", "invalid"),
    ],
    ids=["size", "large", "by gRPC alone", "unknown"],
)
def test_a_refusal_is_an_answer(method: str, request_: Message, code: str, reason: str) -> None:
    """With status, reason and words; the link stays."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            await client.send(call(7, method, request_))
            refusal = (await reply_to(client, 7)).refusal
            assert refusal.code == code
            assert refusal.message
            assert refusal.reason.startswith(reason)
            await client.send(call(8, "Acquire", acquire()))
            assert (await client.receive()).HasField("slab_descriptor")

    asyncio.run(story())


def test_a_long_answer_goes_by_grpc_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of one GPU goes by frame, that of a large node would stand before keepalives."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            one = broker_pb2.GetStateRequest(gpu="SHM-0")
            await client.send(call(1, "GetState", one))
            state = broker_pb2.GetStateReply.FromString((await reply_to(client, 1)).payload)
            assert [gpu.gpu for gpu in state.gpus] == ["SHM-0"]
            monkeypatch.setattr(framed_calls, "LARGEST_ANSWER_BYTES", state.ByteSize())
            await client.send(call(2, "GetState", broker_pb2.GetStateRequest()))
            refusal = (await reply_to(client, 2)).refusal
            assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "invalid")
            assert "call over gRPC" in refusal.message
            await client.send(call(3, "GetState", one))
            assert (await reply_to(client, 3)).payload == state.SerializeToString()

    asyncio.run(story())


def test_a_call_waits_as_long_as_its_caller() -> None:
    """A keeper that says nothing costs a caller its own time, and no more."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            node.keepers.is_stuck = True
            await client.send(call(1, "Acquire", acquire(), seconds=0.05))
            refusal = (await reply_to(client, 1)).refusal
            assert (refusal.code, refusal.reason) == ("DEADLINE_EXCEEDED", "deadline")

    asyncio.run(story())


def test_calls_over_the_limit_are_refused_and_the_link_stays() -> None:
    """The gate is the same as gRPC's."""

    async def story() -> None:
        limits = CallLimits(per_second_per_process=2.0)
        async with running(call_limits=limits) as node, greeted(node) as client:
            reasons = []
            for number in range(1, 5):
                await client.send(call(number, "Release", broker_pb2.ReturnRequest()))
                reasons.append((await reply_to(client, number)).refusal.reason)
            assert reasons[2:] == ["too_many", "too_many"]

    asyncio.run(story())


def test_a_flood_of_calls_ends_the_link() -> None:
    """Even refusals cost something; nothing is heard after the last words."""

    async def story() -> None:
        limits = PresenceLimits(most_credits=9.0, credits_per_second=0.0)
        async with running(limits) as node, greeted(node) as client:
            frame = call(1, "Nonsense", broker_pb2.GetStateRequest())
            for _ in range(200):
                await client.send(frame)
            while (said := await client.receive()).HasField("call_reply"):
                pass
            assert said.refusal.reason == "too_many"

    asyncio.run(story())


def test_a_call_before_hello_is_refused() -> None:
    """It is nobody's."""

    async def story() -> None:
        async with running() as node, Client(node) as client:
            await client.send(call(1, "Acquire", acquire()))
            assert (await client.receive()).refusal.code == "INVALID_ARGUMENT"

    asyncio.run(story())


def test_a_frame_that_only_begins_as_a_call_is_none() -> None:
    """What is cheap to send as a call is no other thing."""
    disguised = (
        call(1, "Release", broker_pb2.ReturnRequest())
        + presence_pb2.ClientFrame(goodbye=presence_pb2.Goodbye()).SerializeToString()
    )
    assert frames.is_call(disguised)
    with pytest.raises(InvalidRequest, match="two things"):
        frames.client_frame(disguised)
