"""What admins set by the API and the file keeps: quotas, weights and drains."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from aqua_protos import broker_pb2
from grpc import aio

from aqua_daemon.adapters.call_limits import CallLimits
from aqua_daemon.adapters.presence_link import PresenceLimits
from aqua_daemon.core.limits import Quota
from tests.daemon.api_calls import drained, quotas, reason_of, set_quota, state
from tests.daemon.in_process import MIB, Client, greeted, greeted_as, identity_of, new_id, running


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
