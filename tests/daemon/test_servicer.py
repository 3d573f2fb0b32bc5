"""The API over a real gRPC server: tokens, leases, producers, visibility, health."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import grpc
import pytest
from aqua_protos import broker_pb2, health_pb2
from grpc import aio

from aqua_daemon import __version__
from aqua_daemon.adapters.call_limits import CallLimits
from aqua_daemon.adapters.grpc_health import HEALTH_SERVICE
from aqua_daemon.adapters.grpc_servicer import REASON_KEY, SERVICE, TOKEN_KEY
from aqua_daemon.adapters.happenings import REMEMBERED_LINES
from aqua_daemon.adapters.presence_link import PresenceLimits
from aqua_daemon.core.events import PresenceEnded, SessionOpened
from aqua_daemon.core.limits import Quota
from aqua_daemon.core.model import LeaseState
from tests.daemon.in_process import (
    GPUS,
    MIB,
    Client,
    greeted,
    greeted_as,
    identity_of,
    lease_of,
    new_id,
    running,
)
from tests.fakes.keepers import CANARY, KEEPER_PID

CACHE = broker_pb2.SAFETY_CLASS_CACHE
STORE = broker_pb2.SAFETY_CLASS_STORE


def acquire_request(nbytes: int = 4 * MIB) -> broker_pb2.AcquireRequest:
    return broker_pb2.AcquireRequest(request_id=new_id(), nbytes=nbytes, safety_class=CACHE)


def reason_of(error: aio.AioRpcError) -> str:
    metadata = error.trailing_metadata() or ()
    return next((str(value) for key, value in metadata if key == REASON_KEY), "none")


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


def test_an_admin_sets_a_quota_that_is_kept_and_others_see_their_own() -> None:
    """The file holds it when the reply is there; a tenant sees its own and may not set it."""

    async def story() -> None:
        async with (
            running() as node,
            greeted(node) as admin,
            greeted_as(node, uid=4711, unit="a.service") as one,
            greeted_as(node, uid=4712, unit="b.service"),
        ):
            mine = "uid-4711/a.service"
            reply = await set_quota(admin, tenant=mine, nbytes=4 * MIB)
            assert reply.outcome == broker_pb2.QUOTA_OUTCOME_APPLIED
            assert (reply.quota.nbytes, reply.quota.revision) == (4 * MIB, 1)
            assert node.settings_file.read().quotas == {mine: Quota(revision=1, nbytes=4 * MIB)}
            late = await set_quota(admin, tenant=mine, use_default=True, revision=1)
            assert late.outcome == broker_pb2.QUOTA_OUTCOME_CONFLICT
            assert late.quota == reply.quota
            await one.acquire()
            with pytest.raises(aio.AioRpcError) as refused:
                await one.acquire()
            assert reason_of(refused.value) == "quota"
            with pytest.raises(aio.AioRpcError) as refused:
                await set_quota(one, tenant=mine, nbytes=64 * MIB)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert [quota.tenant for quota in await quotas(one)] == [mine]
            assert (await quotas(one))[0].held_bytes == 4 * MIB
            assert len(await quotas(admin)) == 3

    asyncio.run(story())


def test_a_weight_and_a_priority_are_set_beside_the_limits() -> None:
    """Each alone or together, with the same revisions; what is set back is the default again."""

    async def story() -> None:
        async with running() as node, greeted(node) as admin:
            reply = await set_quota(admin, tenant="uid-7", weight=2.5, priority=-3)
            assert reply.outcome == broker_pb2.QUOTA_OUTCOME_APPLIED
            assert (reply.quota.weight, reply.quota.priority) == (2.5, -3)
            assert (reply.quota.weight_is_default, reply.quota.is_default) == (False, True)
            kept = Quota(revision=1, nbytes=None, weight=2.5, priority=-3)
            assert [*node.settings_file.read().quotas.values()] == [kept]
            late = await set_quota(admin, tenant="uid-7", weight=3.0, revision=1)
            assert late.outcome == broker_pb2.QUOTA_OUTCOME_CONFLICT
            reply = await set_quota(admin, tenant="uid-7", default_weight=True)
            assert (reply.quota.weight, reply.quota.weight_is_default) == (1.0, True)
            assert (reply.quota.priority, reply.quota.revision) == (-3, 2)

    asyncio.run(story())


def test_a_limit_below_what_is_held_is_deferred_for_those_who_know_the_word() -> None:
    """It is in force and kept either way; an older aquactl hears that it is applied."""

    async def story() -> None:
        async with (
            running() as node,
            greeted(node) as admin,
            greeted_as(node, uid=4711, unit="a.service") as one,
        ):
            mine = "uid-4711/a.service"
            await one.acquire()
            reply = await set_quota(admin, tenant=mine, nbytes=0, revision=5, knows_deferred=True)
            assert reply.outcome == broker_pb2.QUOTA_OUTCOME_DEFERRED
            assert node.settings_file.read().quotas == {mine: Quota(revision=5, nbytes=0)}
            reply = await set_quota(admin, tenant=mine, nbytes=0, revision=5)
            assert reply.outcome == broker_pb2.QUOTA_OUTCOME_APPLIED
            assert reply.quota.held_bytes > 0

    asyncio.run(story())


def test_an_admin_drains_a_gpu_that_stays_drained_in_the_file() -> None:
    """Who is hit is said without any effect first; what is kept is kept when the reply is there."""

    async def story() -> None:
        async with (
            running() as node,
            greeted(node) as admin,
            greeted_as(node, uid=4711, unit="a.service") as one,
        ):
            await one.acquire()
            (lease,) = (await state(one)).leases
            plan = await drained(admin, gpus=[lease.lender_gpu], dry_run=True)
            assert (plan.dry_run, node.settings_file.read().drained) == (True, frozenset())
            (hit,) = plan.hits
            assert (hit.tenant, hit.leases, hit.nbytes) == ("uid-4711/a.service", 1, lease.nbytes)
            done = await drained(admin, gpus=[lease.lender_gpu])
            assert [*done.hits] == [*plan.hits]
            assert node.settings_file.read().drained == {lease.lender_gpu}
            shown = {gpu.gpu: gpu.drained for gpu in (await state(one)).gpus}
            assert [gpu for gpu, is_drained in shown.items() if is_drained] == [lease.lender_gpu]
            with pytest.raises(aio.AioRpcError) as refused:
                await drained(one, all_gpus=True, dry_run=True)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            request = broker_pb2.UndrainRequest(request_id=new_id(), all_gpus=True)
            reply = broker_pb2.UndrainReply.FromString(await admin.call("Undrain", request))
            assert [*reply.gpus] == [lease.lender_gpu]
            assert node.settings_file.read().drained == frozenset()

    asyncio.run(story())


async def drained(client: Client, **fields: object) -> broker_pb2.DrainReply:
    request = broker_pb2.DrainRequest(request_id=new_id(), **fields)  # type: ignore[arg-type]  # its own
    return broker_pb2.DrainReply.FromString(await client.call("Drain", request))


def test_leases_and_sessions_are_set_beside_bytes() -> None:
    """What a call does not name stays; who is over is refused with reason quota, also at hello."""

    async def story() -> None:
        async with (
            running() as node,
            greeted(node) as admin,
            greeted_as(node, uid=4711, unit="a.service") as one,
        ):
            mine = "uid-4711/a.service"
            await set_quota(admin, tenant=mine, nbytes=64 * MIB)
            reply = await set_quota(admin, tenant=mine, leases=1, sessions=1)
            assert (reply.quota.nbytes, reply.quota.leases, reply.quota.sessions) == (
                64 * MIB,
                1,
                1,
            )
            kept = Quota(revision=2, nbytes=64 * MIB, leases=1, sessions=1)
            assert node.settings_file.read().quotas == {mine: kept}
            await one.acquire()
            with pytest.raises(aio.AioRpcError, match="1 of its 1 leases") as refused:
                await one.acquire()
            assert reason_of(refused.value) == "quota"
            async with Client(node) as second:
                node.identify = identity_of(uid=4711, unit="a.service")
                refusal = (await second.hello()).refusal
                assert refusal.code == "RESOURCE_EXHAUSTED"
                assert "1 of its 1 sessions" in refusal.message
            (shown,) = await quotas(one)
            assert (shown.held_leases, shown.held_sessions) == (1, 1)

    asyncio.run(story())


def test_everybody_is_told_what_callers_may_ask() -> None:
    """The limits of a process and of a user, as they are in force."""

    async def story() -> None:
        calls = CallLimits(under_way_per_uid=77, per_second_per_process=123.0)
        async with (
            running(PresenceLimits(connections_per_uid=9), call_limits=calls) as node,
            greeted_as(node, uid=4711, unit="a.service") as one,
        ):
            payload = await one.call("GetQuotas", broker_pb2.GetQuotasRequest())
            limits = broker_pb2.GetQuotasReply.FromString(payload).caller_limits
            assert (limits.connections_per_uid, limits.sessions_per_process) == (9, 64)
            assert (limits.calls_per_process, limits.calls_per_uid) == (128, 77)
            assert limits.calls_per_second_per_process == 123.0
            assert limits.calls_per_second_per_uid == 8000.0

    asyncio.run(story())


def test_a_quota_that_can_not_be_kept_is_an_error_that_says_so() -> None:
    """It is in force, and the admin learns that it ends with the daemon."""

    async def story() -> None:
        async with running() as node, greeted(node) as admin:
            (Path(node.path).parent / "state").write_text("in the way")
            with pytest.raises(aio.AioRpcError) as refused:
                await set_quota(admin, tenant="uid-7", nbytes=0)
            assert reason_of(refused.value) == "not_kept"
            assert "ends with this daemon" in (refused.value.details() or "")

    asyncio.run(story())


async def set_quota(client: Client, **fields: object) -> broker_pb2.SetQuotaReply:
    request = broker_pb2.SetQuotaRequest(request_id=new_id(), **fields)  # type: ignore[arg-type]  # the message's own fields
    return broker_pb2.SetQuotaReply.FromString(await client.call("SetQuota", request))


async def quotas(client: Client) -> list[broker_pb2.Quota]:
    reply = await client.call("GetQuotas", broker_pb2.GetQuotasRequest())
    return list(broker_pb2.GetQuotasReply.FromString(reply).quotas)


async def events(client: Client, *, epoch: str = "", after: int = 0) -> broker_pb2.GetEventsReply:
    request = broker_pb2.GetEventsRequest(epoch=epoch, after=after)
    return broker_pb2.GetEventsReply.FromString(await client.call("GetEvents", request))


async def state(client: Client) -> broker_pb2.GetStateReply:
    reply = await client.call("GetState", broker_pb2.GetStateRequest())
    return broker_pb2.GetStateReply.FromString(reply)


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
