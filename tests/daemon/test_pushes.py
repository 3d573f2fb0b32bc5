"""What the daemon pushes over the presence socket, also to clients that do not read."""

from __future__ import annotations

import asyncio

from aqua_daemon.adapters.presence_link import PresenceLimits
from aqua_daemon.core.events import LossTold, PresenceEnded
from aqua_daemon.core.instructions import TellLost
from aqua_daemon.core.model import SessionId, SessionState
from tests.daemon.in_process import greeted, lease_of, new_id, running
from tests.daemon.presences import open_descriptors, revoke_for, state_of


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
