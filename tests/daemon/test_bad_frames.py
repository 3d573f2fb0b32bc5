"""Bad frames of the presence socket: the right status, a message that helps, and books as they were.

Each row is sent to a node that holds a live lease, over its real sockets. The books are compared
whole, before and after. Bad calls of the API are in test_bad_calls.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

import pytest
from aqua_protos import broker_pb2, presence_pb2
from aqua_protos.framing import LARGEST_FRAME_BYTES, Disconnected

from aqua_daemon.core.events import PresenceEnded
from aqua_daemon.core.model import SessionState
from tests.daemon.in_process import Client, greeted, lease_of, running

ID = "0a" * 16
HUGE = 2**63 - 1
TRUNCATED = b"\x0a\x20abc"  # field 1 says 32 bytes and has 3


@dataclass(frozen=True, slots=True, kw_only=True)
class BadFrame:
    """A frame, and what must come of it."""

    payload: bytes
    code: str = "INVALID_ARGUMENT"
    says: str


def hello(**fields: object) -> bytes:
    good = {"protocol": 1, **fields}
    message = presence_pb2.Hello(**good)  # type: ignore[arg-type]  # a bad one
    return presence_pb2.ClientFrame(hello=message).SerializeToString()


def keepalive(sequence: int = 1, **use: object) -> bytes:
    message = presence_pb2.Keepalive(sequence=sequence)
    if use:
        message.leases.add(**{"lease_id": ID, **use})
    return presence_pb2.ClientFrame(keepalive=message).SerializeToString()


def keepalive_room(**room: int) -> bytes:
    message = presence_pb2.Keepalive(host_room=broker_pb2.HostRoom(**room))
    return presence_pb2.ClientFrame(keepalive=message).SerializeToString()


def keepalive_of(*lease_ids: str) -> bytes:
    message = presence_pb2.Keepalive()
    for lease_id in lease_ids:
        message.leases.add(lease_id=lease_id)
    return presence_pb2.ClientFrame(keepalive=message).SerializeToString()


GOODBYE = presence_pb2.ClientFrame(goodbye=presence_pb2.Goodbye()).SerializeToString()
UNKNOWN_KIND = b"\x4a\x00"  # field 9, empty
ANY_TIME = [
    BadFrame(payload=b"", says="send one of hello"),
    BadFrame(payload=TRUNCATED, says="send a whole message"),
    BadFrame(payload=b"\xff" * 100, says="do not parse as aqua.broker.v1.ClientFrame"),
    BadFrame(payload=UNKNOWN_KIND, says="send one of hello"),
    BadFrame(payload=hello(session_id="x"), says="session_id 'x' is no id"),
    BadFrame(payload=hello(home_gpu="?"), says="names no GPU"),
    BadFrame(payload=hello(features=["f"] * 65), says="at most 64"),
    BadFrame(payload=hello(features=["Ä"]), says="is no name"),
    BadFrame(payload=hello(program="p" * 129), says="at most 128 printable"),
    BadFrame(payload=hello(version="\x1b[31m"), says="printable"),
    BadFrame(payload=hello(host_room=broker_pb2.HostRoom(nbytes=-1)), says="nbytes is -1"),
    BadFrame(payload=keepalive(-1), says="sequence is -1"),
    BadFrame(payload=keepalive(lease_id="no"), says="lease id 'no'"),
    BadFrame(payload=keepalive(used_bytes=-1), says="used_bytes is -1"),
    BadFrame(payload=keepalive(copy_bytes=HUGE), says=f"copy_bytes is {HUGE}"),
    BadFrame(payload=keepalive(idle_seconds=math.nan), says="idle_seconds is nan"),
    BadFrame(payload=keepalive(idle_seconds=math.inf), says="idle_seconds is inf"),
    BadFrame(payload=keepalive(idle_seconds=-1.0), says="idle_seconds is -1.0"),
    BadFrame(payload=keepalive_of(ID, ID), says="names a lease twice"),
    BadFrame(payload=keepalive_of(*[ID] * 10_001), says="at most 10000"),
    BadFrame(payload=keepalive_room(nbytes=-1), says="host_room.nbytes is -1"),
    BadFrame(payload=keepalive_room(revision=HUGE), says="host_room.revision is"),
]
BEFORE_HELLO = [
    *ANY_TIME,
    BadFrame(payload=keepalive(), says="say hello first"),
    BadFrame(payload=GOODBYE, says="say hello first"),
    BadFrame(payload=hello(protocol=0), says="speaks protocol 0"),
    BadFrame(payload=hello(protocol=2**32 - 1), says="at most one apart"),
    BadFrame(payload=hello(home_gpu="SHM-9"), says="which has SHM-0, SHM-1"),
    BadFrame(payload=hello(sub_tenant="A/B"), says="is no name for one"),
    BadFrame(payload=hello(sub_tenant="x.service"), says="choose another name"),
]
AFTER_HELLO = [
    *ANY_TIME,
    BadFrame(payload=hello(), says="open another"),
    BadFrame(payload=hello(session_id=ID), says="open another"),
]


@pytest.mark.parametrize("bad", BEFORE_HELLO, ids=lambda bad: bad.says)
def test_a_bad_first_frame_is_refused_and_ends_the_connection(bad: BadFrame) -> None:
    """No session comes of it, and another client's is as before."""

    async def story() -> None:
        async with running() as node, greeted(node) as other, Client(node) as client:
            await other.acquire()
            before = node.service.snapshot()
            await client.send(bad.payload)
            frame = await client.receive()
            assert frame.refusal.code == bad.code
            assert bad.says in frame.refusal.message
            with pytest.raises(Disconnected):
                await client.receive()
            assert node.service.snapshot() == before
            assert not node.service.faults

    asyncio.run(story())


@pytest.mark.parametrize("bad", AFTER_HELLO, ids=lambda bad: bad.says)
def test_a_bad_frame_of_a_session_is_refused_and_changes_nothing(bad: BadFrame) -> None:
    """The session lives on: its next keepalive is answered."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            lease_id = lease_of(await client.acquire())
            await client.receive()
            before = node.service.snapshot()
            await client.send(bad.payload)
            frame = await client.receive()
            assert frame.refusal.code == bad.code
            assert bad.says in frame.refusal.message
            assert node.service.snapshot() == before
            assert not node.service.faults
            frame = await client.keepalive(lease_id)
            assert not frame.keepalive_reply.ended_lease_ids

    asyncio.run(story())


@pytest.mark.parametrize("nbytes", [LARGEST_FRAME_BYTES + 1, 2**32 - 1])
def test_a_frame_over_the_limit_ends_its_own_session_only(nbytes: int) -> None:
    """The stream can't be trusted any more: the client is told, its session suspect, no other."""

    async def story() -> None:
        async with running() as node, greeted(node) as client, greeted(node) as other:
            await client.acquire()
            await client.receive()
            before = node.service.snapshot()
            await client.send_raw(nbytes.to_bytes(4, "big") + b"x")
            frame = await client.receive()
            assert frame.refusal.code == "RESOURCE_EXHAUSTED"
            assert f"{nbytes} bytes is over the limit" in frame.refusal.message
            assert "re-attach" in frame.refusal.message
            await node.wait_for(lambda: node.events(PresenceEnded), "the link was not ended")
            after = node.service.snapshot()
            assert after.leases == before.leases
            states = {one.session_id: one.state for one in after.sessions}
            assert states == {
                client.session_id: SessionState.SUSPECT,
                other.session_id: SessionState.LIVE,
            }
            async with greeted(node, session_id=client.session_id):
                assert node.service.snapshot() == before

    asyncio.run(story())


def test_half_a_frame_is_no_frame() -> None:
    """A client that ends in the middle of one has said nothing."""

    async def story() -> None:
        async with running() as node, Client(node) as client:
            before = node.service.snapshot()
            await client.send_raw(b"\x00\x00\x00\x10half")
            client.connection.close()
            async with greeted(node) as other:
                await other.keepalive()
                assert [one.session_id for one in node.service.snapshot().sessions] == [
                    other.session_id
                ]
            assert before.sessions == ()

    asyncio.run(story())
