"""The presence socket: greetings, re-attaches, keepalives, goodbyes and its end."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from aqua_protos import presence_pb2
from aqua_protos.framing import Disconnected

from aqua_daemon.adapters.processes import Peer, peer_of
from aqua_daemon.core.events import PresenceEnded, SentinelEnded, SessionClosed
from aqua_daemon.core.model import ProcessIdentity, SessionState
from tests.daemon.in_process import MIB, Client, greeted, lease_of, new_id, running
from tests.daemon.presences import state_of


def test_a_new_session_gets_who_it_is_a_token_and_a_sentinel() -> None:
    """Welcome says session, tenant, term and slab sizes; the broker knows the kernel's word."""

    async def story() -> None:
        async with running() as node, Client(node) as client:
            frame = await client.hello(home_gpu="SHM-0", sub_tenant="blue")
            welcome = frame.welcome
            assert welcome.has_sentinel
            assert client.sentinel is not None
            assert len(welcome.token) == 32
            assert welcome.tenant.startswith(f"uid-{os.getuid()}")
            assert welcome.tenant.endswith("blue")
            assert (welcome.smallest_slab_bytes, welcome.largest_slab_bytes) == (4 * MIB, 32 * MIB)
            assert welcome.term_seconds == 10.0
            (session,) = node.service.snapshot().sessions
            assert session.session_id == welcome.session_id
            assert session.process.pid == os.getpid()
            assert session.home_gpu == "SHM-0"
            assert node.presence.session_of(welcome.token) == session.session_id
            assert node.presence.caller_of(session.session_id) == (os.getpid(), os.getuid())
            assert node.holders.knows(session.session_id)

    asyncio.run(story())


def test_leases_of_a_session_that_is_no_more_are_named_as_ended() -> None:
    """A process that opens a new session with old leases is told to give them up."""

    async def story() -> None:
        async with running() as node, Client(node) as client:
            old = new_id()
            frame = await client.hello(leases=[presence_pb2.LeaseUse(lease_id=old)])
            assert list(frame.welcome.ended_lease_ids) == [old]

    asyncio.run(story())


def test_the_token_ends_with_its_connection_and_the_process_may_come_back() -> None:
    """End-of-file makes the session suspect; the same process re-attaches and gets a new token."""

    async def story() -> None:
        async with running() as node, greeted(node) as first:
            token, session_id = first.token, first.session_id
            first.connection.close()
            await node.wait_for(lambda: node.events(PresenceEnded), "no PresenceEnded")
            assert node.presence.session_of(token) is None
            assert state_of(node, session_id) is SessionState.SUSPECT
            async with greeted(node, session_id=session_id) as second:
                assert second.session_id == session_id
                assert second.token != token
                assert second.sentinel is None  # the first one is good as long as it is open
                assert state_of(node, session_id) is SessionState.LIVE

    asyncio.run(story())


def test_a_re_attach_displaces_the_connection_before_it() -> None:
    """The old connection and its token end; the session does not notice."""

    async def story() -> None:
        async with (
            running() as node,
            greeted(node) as first,
            greeted(node, session_id=first.session_id) as second,
        ):
            with pytest.raises(Disconnected):
                await first.receive()
            assert node.presence.session_of(first.token) is None
            assert node.presence.session_of(second.token) == first.session_id
            assert not node.events(PresenceEnded)
            assert state_of(node, first.session_id) is SessionState.LIVE

    asyncio.run(story())


def test_another_process_cannot_take_a_session_over() -> None:
    """A re-attach by anybody but the process of the session is refused, and displaces nobody."""

    async def story() -> None:
        async with running() as node, greeted(node) as owner, Client(node) as thief:

            def somebody_else(connection: socket.socket) -> Peer:
                peer = peer_of(connection)
                process = ProcessIdentity(pid=peer.process.pid, start_ticks=1, uid=12345)
                return Peer(process=process, pidfd=peer.pidfd, cgroup=peer.cgroup)

            node.identify = somebody_else
            frame = await thief.hello(session_id=owner.session_id)
            assert frame.refusal.code == "PERMISSION_DENIED"
            with pytest.raises(Disconnected):
                await thief.receive()
            assert node.presence.session_of(owner.token) == owner.session_id
            assert (await owner.keepalive()).HasField("keepalive_reply")

    asyncio.run(story())


def test_an_unknown_session_is_refused_so_that_the_client_opens_a_new_one() -> None:
    """NOT_FOUND, once a new daemon can no longer be missing somebody."""

    async def story() -> None:
        async with running() as node, Client(node) as client:
            node.advance(20.0)
            frame = await client.hello(session_id=new_id())
            assert frame.refusal.code == "NOT_FOUND"
            assert "open a new one" in frame.refusal.message

    asyncio.run(story())


def test_a_new_daemon_makes_a_sentinel_for_a_session_without_slabs() -> None:
    """No keeper kept the proofs of a session that held nothing, so Welcome brings a new sentinel."""

    async def story() -> None:
        async with running() as node, Client(node) as client:
            frame = await client.hello(session_id=new_id())
            assert frame.welcome.has_sentinel
            assert node.holders.knows(client.session_id)
            client.leave()
            await node.wait_for(lambda: node.events(SentinelEnded), "no SentinelEnded")

    asyncio.run(story())


def test_a_keepalive_names_leases_and_drops_the_handles_that_arrived() -> None:
    """What the client names it has opened; what is not its own it is told to close."""

    async def story() -> None:
        async with running() as node, greeted(node) as client, greeted(node) as other:
            mine = lease_of(await client.acquire())
            theirs = lease_of(await other.acquire())
            assert (await client.receive()).slab_descriptor.lease_id == mine
            frame = await client.keepalive(mine, theirs, sequence=7)
            assert frame.keepalive_reply.sequence == 7
            assert list(frame.keepalive_reply.ended_lease_ids) == [theirs]
            assert node.keepers.handle(mine) is None
            assert node.keepers.handle(theirs) is not None

    asyncio.run(story())


def test_goodbye_ends_the_session_and_all_that_belongs_to_it() -> None:
    """A client that left holds no slab, no token, no connection and no proof."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            await client.acquire()
            goodbye = presence_pb2.ClientFrame(goodbye=presence_pb2.Goodbye())
            await client.receive()
            await client.send(goodbye)
            with pytest.raises(Disconnected):
                await client.receive()
            assert node.events(SessionClosed)
            assert not node.events(PresenceEnded)
            assert node.presence.session_of(client.token) is None
            assert not node.holders.knows(client.session_id)
            assert not node.service.snapshot().leases
            assert not node.service.snapshot().sessions

    asyncio.run(story())


def test_a_closed_server_has_given_everything_back() -> None:
    """After `close` no connection, token or descriptor is left, and nobody was called gone."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            node.presence.close()
            node.presence.close()
            with pytest.raises(Disconnected):
                await client.receive()
            assert node.presence.session_of(client.token) is None
            assert not node.events(PresenceEnded)

    asyncio.run(story())
