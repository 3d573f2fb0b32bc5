"""The presence socket: greetings, re-attaches, keepalives, pushes, and clients that misbehave."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest
from aqua_protos import presence_pb2
from aqua_protos.framing import Disconnected

from aqua_daemon.adapters.presence_link import PresenceLimits
from aqua_daemon.adapters.processes import Peer, peer_of
from aqua_daemon.core.events import (
    LossTold,
    PresenceEnded,
    SentinelEnded,
    SessionClosed,
    SessionOpened,
    SessionReattached,
)
from aqua_daemon.core.instructions import SendRevoke, TellLost
from aqua_daemon.core.model import (
    GpuUuid,
    LeaseId,
    ProcessIdentity,
    RevokeReason,
    SessionId,
    SessionState,
)
from tests.daemon.in_process import MIB, Client, Node, greeted, lease_of, new_id, running


def state_of(node: Node, session_id: SessionId) -> SessionState | None:
    sessions = {one.session_id: one for one in node.service.snapshot().sessions}
    return sessions[session_id].state if session_id in sessions else None


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


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def revoke_for(session_id: SessionId, *, leases: int = 1) -> SendRevoke:
    return SendRevoke(
        session_id=session_id,
        gpu=GpuUuid("SHM-1"),
        nbytes=4 * MIB,
        reason=RevokeReason.RECLAIM,
        deadline=2.0,
        lease_ids=tuple(LeaseId(new_id()) for _ in range(leases)),
    )


def test_revokes_losses_and_the_restart_are_pushed() -> None:
    """Each push comes as a frame that says it all; a loss counts as told."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            order = revoke_for(client.session_id)
            node.presence.send_revoke(order, seconds=1.5)
            frame = await client.receive()
            assert frame.revoke.deadline_seconds == 1.5
            assert frame.revoke.reason == "reclaim"
            assert list(frame.revoke.lease_ids) == list(order.lease_ids)
            lost = TellLost(
                session_id=client.session_id, lease_ids=order.lease_ids, reason="keeper ended"
            )
            node.presence.tell_lost(lost)
            frame = await client.receive()
            assert list(frame.leases_lost.lease_ids) == list(order.lease_ids)
            assert node.events(LossTold) == [LossTold(lease_ids=order.lease_ids)]
            node.presence.announce_restart()
            assert (await client.receive()).HasField("restarting")

    asyncio.run(story())


def test_what_is_revoked_comes_again_after_the_welcome_of_a_re_attach() -> None:
    """The client first learns who it is, then what it is to give back."""

    async def story() -> None:
        async with running() as node, greeted(node) as first:
            lease_id = lease_of(await first.acquire())
            first.connection.close()
            await node.wait_for(lambda: node.events(PresenceEnded), "no PresenceEnded")
            node.advance(10.5)  # a term without contact: revoked, to nobody
            async with greeted(node, session_id=first.session_id) as second:
                frame = await second.receive()
                assert list(frame.revoke.lease_ids) == [lease_id]
                assert frame.revoke.reason == "lapsed"

    asyncio.run(story())


def test_pushes_to_sessions_that_are_not_attached_have_no_effect() -> None:
    """No verb of the port raises or waits, and a loss counts as told."""

    async def story() -> None:
        async with running() as node:
            nobody = SessionId(new_id())
            order = revoke_for(nobody)
            node.presence.send_revoke(order, seconds=1.0)
            node.presence.tell_lost(
                TellLost(session_id=nobody, lease_ids=order.lease_ids, reason="gone")
            )
            node.presence.forget(nobody)
            assert node.events(LossTold)
            assert not node.presence.send_descriptor(nobody, order.lease_ids[0], 0)

    asyncio.run(story())


def test_a_client_that_does_not_read_loses_its_connection_not_the_daemons_time() -> None:
    """Past the bound of what waits for it the link is closed and the session suspect."""

    async def story() -> None:
        limits = PresenceLimits(most_queued_bytes=16 * 1024)
        async with running(limits) as node, greeted(node) as sleeper, greeted(node) as other:
            order = revoke_for(sleeper.session_id, leases=1000)
            for _ in range(100):
                node.presence.send_revoke(order, seconds=1.0)
            await node.wait_for(lambda: node.events(PresenceEnded), "the link was not closed")
            assert state_of(node, sleeper.session_id) is SessionState.SUSPECT
            assert (await other.keepalive()).HasField("keepalive_reply")

    asyncio.run(story())


def test_descriptors_do_not_pile_up_for_a_client_that_does_not_read() -> None:
    """Past the bound no more descriptors are taken for it."""

    async def story() -> None:
        limits = PresenceLimits(most_queued_descriptors=4)
        async with running(limits) as node, greeted(node) as client:
            lease_id = lease_of(await client.acquire())
            handle = node.keepers.handle(lease_id)
            assert handle is not None
            assert handle.descriptor is not None
            before = len(open_descriptors())
            taken = 0
            while node.presence.send_descriptor(client.session_id, lease_id, handle.descriptor):
                taken += 1
                assert taken < 100_000
            held = len(open_descriptors()) - before
            assert held <= 4

    asyncio.run(story())


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
