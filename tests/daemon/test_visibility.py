"""What a caller of the API sees: the state and the events, all of it or its own."""

from __future__ import annotations

import asyncio

from aqua_protos import broker_pb2

from aqua_daemon import __version__
from aqua_daemon.adapters.happenings import REMEMBERED_LINES
from tests.daemon.api_calls import events, state
from tests.daemon.in_process import MIB, greeted, greeted_as, lease_of, running


def test_an_admin_sees_everything_and_others_what_is_theirs() -> None:
    """Leases, tenants and events of others are hidden; every sum is there."""

    async def story() -> None:
        async with (
            running() as node,
            greeted(node) as admin,
            greeted_as(node, uid=4711, unit="a.service") as one,
            greeted_as(node, uid=4712, unit="b.service") as two,
        ):
            await admin.acquire()
            mine = lease_of(await one.acquire())
            await two.acquire()
            whole = await state(admin)
            assert len(whole.leases) == len(whole.tenants) == 3
            assert {event.tenant for event in whole.events} > {"", "uid-4711/a.service"}
            assert whole.version == __version__
            assert not whole.restarting
            part = await state(one)
            assert [lease.lease_id for lease in part.leases] == [mine]
            assert [one.tenant for one in part.tenants] == ["uid-4711/a.service"]
            assert {event.tenant for event in part.events} == {"uid-4711/a.service"}
            assert part.events[0].text.startswith("session of uid-4711/a.service opened")
            assert part.sessions == whole.sessions == 3
            assert list(part.gpus) == list(whole.gpus)
            assert sum(gpu.lent_bytes for gpu in part.gpus) == 12 * MIB
            assert part.host_pool_bytes == 64 * MIB

    asyncio.run(story())


def test_events_are_told_once_each_to_whom_they_concern() -> None:
    """A cursor leads on; a tenant reads of itself alone; a cursor of another daemon begins anew."""

    async def story() -> None:
        async with (
            running() as node,
            greeted(node) as admin,
            greeted_as(node, uid=4711, unit="a.service") as one,
        ):
            first = await events(admin)
            assert [event.number for event in first.events] == [1, 2, 3]
            assert first.events[0].text.startswith("keeper of")
            assert not first.partial
            lease_id = lease_of(await one.acquire())
            node.clock.advance(2.0)
            news = await events(admin, epoch=first.epoch, after=first.cursor)
            assert [lease_id[:8] in event.text for event in news.events] == [True, True]
            assert {event.seconds_ago for event in news.events} == {2.0}
            assert {event.tenant for event in news.events} == {"uid-4711/a.service"}
            assert not (await events(admin, epoch=first.epoch, after=news.cursor)).events
            mine = await events(one)
            assert [event.tenant for event in mine.events] == ["uid-4711/a.service"] * 3
            assert mine.cursor == news.cursor
            again = await events(admin, epoch="of another daemon", after=news.cursor)
            assert len(again.events) == news.cursor

    asyncio.run(story())


def test_a_follower_who_comes_too_late_is_told_that_events_are_missing() -> None:
    """What is remembered is bounded, and says so."""

    async def story() -> None:
        async with running() as node, greeted(node) as admin:
            first = await events(admin)
            for number in range(REMEMBERED_LINES + 1):
                node.happenings.remember(str(number), at=node.clock(), tenant=None)
            late = await events(admin, epoch=first.epoch, after=first.cursor)
            assert late.partial
            assert len(late.events) == REMEMBERED_LINES
            assert late.events[0].text == "1"

    asyncio.run(story())


def test_one_gpu_can_be_looked_at_alone() -> None:
    """Its figures and nothing else; of one that is not there, nothing."""

    async def story() -> None:
        async with running() as node, greeted(node) as client:
            await client.acquire()
            whole = await state(client)
            lender = whole.leases[0].lender_gpu
            asked = broker_pb2.GetStateRequest(gpu=lender)
            reply = await client.call("GetState", asked)
            part = broker_pb2.GetStateReply.FromString(reply)
            assert [gpu for gpu in whole.gpus if gpu.gpu == lender] == list(part.gpus)
            assert part == broker_pb2.GetStateReply(gpus=part.gpus)
            nowhere = await client.call("GetState", broker_pb2.GetStateRequest(gpu="SHM-9"))
            assert nowhere == b""

    asyncio.run(story())
