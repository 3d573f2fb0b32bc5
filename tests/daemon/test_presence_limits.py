"""What a client may send, hold and open at the presence socket, and what more gets it."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from aqua_protos import presence_pb2
from aqua_protos.framing import Disconnected

from aqua_daemon.adapters.presence_link import PresenceLimits
from aqua_daemon.core.events import PresenceEnded, SessionClosed, SessionOpened, SessionReattached
from tests.daemon.in_process import Client, greeted, new_id, running
from tests.daemon.presences import open_descriptors


def test_a_flood_of_frames_is_refused_with_what_to_do() -> None:
    """A client that sends without end is told to slow down and loses its connection."""

    async def story() -> None:
        limits = PresenceLimits(most_credits=20.0)
        async with running(limits) as node, greeted(node) as client:
            keepalive = presence_pb2.ClientFrame(keepalive=presence_pb2.Keepalive(sequence=1))
            frame = presence_pb2.DaemonFrame()
            while not frame.HasField("refusal"):
                await client.send(keepalive)
                frame = await client.receive()
            assert frame.refusal.code == "RESOURCE_EXHAUSTED"
            assert "wait for its reply" in frame.refusal.message
            assert "re-attach" in frame.refusal.message
            with pytest.raises(Disconnected):
                await client.receive()
            await node.wait_for(lambda: node.events(PresenceEnded), "no PresenceEnded")

    asyncio.run(story())


def test_credit_comes_back_with_time() -> None:
    """A client that keeps to its pace is never refused."""

    async def story() -> None:
        async with running(PresenceLimits(most_credits=10.0)) as node, greeted(node) as client:
            for sequence in range(20):
                node.advance(3.3)
                frame = await client.keepalive(sequence=sequence)
                assert frame.HasField("keepalive_reply")

    asyncio.run(story())


def test_a_burst_of_frames_ends_before_the_daemon_is_long_busy_with_it() -> None:
    """So short is what each of a process's sessions may send at once, however small the frames."""

    async def story() -> None:
        async with running(PresenceLimits()) as node, greeted(node) as client:
            frame, heard = presence_pb2.DaemonFrame(), 0
            while not frame.HasField("refusal"):
                await client.send(
                    presence_pb2.ClientFrame(keepalive=presence_pb2.Keepalive(sequence=1))
                )
                frame = await client.receive()
                heard += 1
            assert 20 <= heard <= 40

    asyncio.run(story())


def test_large_frames_buy_no_more_of_the_daemons_time_than_small_ones() -> None:
    """The largest keepalive is heard, also twice; three at once are as much as a flood."""

    async def story() -> None:
        uses = [presence_pb2.LeaseUse(lease_id=f"{number:032x}") for number in range(10_000)]
        keepalive = presence_pb2.ClientFrame(
            keepalive=presence_pb2.Keepalive(sequence=1, leases=uses)
        )
        async with running(PresenceLimits()) as node, greeted(node) as client:
            for _ in range(2):
                await client.send(keepalive)
                assert (await client.receive()).HasField("keepalive_reply")
            await client.send(keepalive)
            assert (await client.receive()).refusal.code == "RESOURCE_EXHAUSTED"

    asyncio.run(story())


def test_a_connection_without_a_hello_is_ended() -> None:
    """Who says nothing is told what was expected, and goes."""

    async def story() -> None:
        async with running(PresenceLimits(hello_seconds=0.05)) as node, Client(node) as client:
            frame = await client.receive()
            assert frame.refusal.code == "DEADLINE_EXCEEDED"
            with pytest.raises(Disconnected):
                await client.receive()
            assert not node.events(SessionOpened)

    asyncio.run(story())


def test_connections_are_limited_per_uid_and_in_all() -> None:
    """One connection too many is refused with the figure; one that ends makes room."""

    async def story(limits: PresenceLimits, word: str) -> None:
        async with running(limits) as node, greeted(node) as first, greeted(node) as second:
            async with Client(node) as third:
                frame = await third.receive()
                assert frame.refusal.code == "RESOURCE_EXHAUSTED"
                assert word in frame.refusal.message
                with pytest.raises(Disconnected):
                    await third.receive()
            first.connection.close()
            await node.wait_for(lambda: node.events(PresenceEnded), "no PresenceEnded")
            async with greeted(node):
                assert (await second.keepalive()).HasField("keepalive_reply")

    asyncio.run(story(PresenceLimits(connections_per_uid=2), f"uid {os.getuid()} has 2"))
    asyncio.run(story(PresenceLimits(connections=2), "the node has 2"))


def test_sessions_are_limited_per_process() -> None:
    """A process that forgets to say goodbye uses up its own sessions, never our descriptors."""

    async def story() -> None:
        async with running(PresenceLimits(sessions_per_process=2)) as node:
            for _ in range(2):
                async with greeted(node):
                    pass
            await node.wait_for(lambda: len(node.events(PresenceEnded)) == 2, "no PresenceEnded")
            before = open_descriptors()
            async with Client(node) as third:
                frame = await third.hello()
                assert frame.refusal.code == "RESOURCE_EXHAUSTED"
                assert f"process {os.getpid()} has 2 sessions" in frame.refusal.message
            (first, _) = node.events(SessionOpened)
            assert isinstance(first, SessionOpened)
            async with greeted(node, session_id=first.session_id) as back:  # this one is no more
                await back.send(presence_pb2.ClientFrame(goodbye=presence_pb2.Goodbye()))
                await node.wait_for(lambda: node.events(SessionClosed), "no SessionClosed")
            assert open_descriptors() <= before
            async with greeted(node):
                pass

    asyncio.run(story())


def test_a_process_has_no_more_sessions_by_making_up_old_ones() -> None:
    """While a daemon waits for those whom the last one knew, an id is soon invented."""

    async def story() -> None:
        limits = PresenceLimits(sessions_per_process=2)
        async with running(limits, has_heard_keepers=False) as node:
            for _ in range(2):
                async with greeted(node, session_id=new_id()):
                    pass
            async with Client(node) as third:
                frame = await third.hello(session_id=new_id())
                assert frame.refusal.code == "RESOURCE_EXHAUSTED"
                assert f"process {os.getpid()} has 2 sessions" in frame.refusal.message
            known = node.events(SessionReattached)[0]
            assert isinstance(known, SessionReattached)
            async with greeted(node, session_id=known.session_id):
                pass

    asyncio.run(story())


def test_descriptors_of_a_client_are_never_taken() -> None:
    """What a client sends by SCM_RIGHTS stays outside this process."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            reader, writer = os.pipe()
            before = open_descriptors()
            frame = presence_pb2.ClientFrame(keepalive=presence_pb2.Keepalive(sequence=1))
            payload = frame.SerializeToString()
            header = len(payload).to_bytes(4, "big")
            socket.send_fds(client.connection, [header + payload], [writer])
            assert (await client.receive()).HasField("keepalive_reply")
            assert open_descriptors() <= before
            os.close(reader)
            os.close(writer)
            assert node.events(SessionOpened)

    asyncio.run(story())
