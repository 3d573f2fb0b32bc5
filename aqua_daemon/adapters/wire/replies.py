"""The API's replies: answers of the core in, the bytes of a reply out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aqua_protos import broker_pb2, health_pb2

from aqua_daemon.adapters.call_limits import CallLimits
from aqua_daemon.adapters.happenings import Happening
from aqua_daemon.adapters.wire.requests import parsed
from aqua_daemon.core.instructions import (
    AnswerDrain,
    AnswerExchange,
    AnswerHostRoom,
    AnswerLinkProbe,
    AnswerOffer,
    AnswerQuiesce,
    AnswerReclaim,
    AnswerReturned,
    AnswerUndrain,
)
from aqua_daemon.core.limits import QuotaOutcome
from aqua_daemon.core.model import GpuUuid, Lease, LeaseState, LeaseUse, SafetyClass
from aqua_daemon.core.node_snapshot import (
    GpuSnapshot,
    LinkSnapshot,
    NodeSnapshot,
    QuotaSnapshot,
    TenantSnapshot,
)
from aqua_daemon.ports import DescriptorKind, SlabHandle

_CLASSES = {
    SafetyClass.STORE: broker_pb2.SAFETY_CLASS_STORE,
    SafetyClass.CACHE: broker_pb2.SAFETY_CLASS_CACHE,
}
_STATES = {
    LeaseState.ALLOCATING: broker_pb2.LEASE_STATE_ALLOCATING,
    LeaseState.LEASED: broker_pb2.LEASE_STATE_LEASED,
    LeaseState.REVOKING: broker_pb2.LEASE_STATE_REVOKING,
    LeaseState.QUARANTINED: broker_pb2.LEASE_STATE_QUARANTINED,
    LeaseState.RETURNED: broker_pb2.LEASE_STATE_RETURNED,
    LeaseState.FREEING: broker_pb2.LEASE_STATE_FREEING,
    LeaseState.LOST: broker_pb2.LEASE_STATE_LOST,
}

_OUTCOMES = {
    QuotaOutcome.APPLIED: broker_pb2.QUOTA_OUTCOME_APPLIED,
    QuotaOutcome.DEFERRED: broker_pb2.QUOTA_OUTCOME_DEFERRED,
    QuotaOutcome.STALE: broker_pb2.QUOTA_OUTCOME_STALE,
    QuotaOutcome.CONFLICT: broker_pb2.QUOTA_OUTCOME_CONFLICT,
}
_DESCRIPTOR_KINDS = {
    DescriptorKind.SHARED_MEMORY: broker_pb2.DESCRIPTOR_KIND_SHARED_MEMORY,
    DescriptorKind.CUDA_VMM: broker_pb2.DESCRIPTOR_KIND_CUDA_VMM,
}


def acquired(lease: Lease, handle: SlabHandle, *, pid: int, now: float) -> bytes:
    """AcquireReply."""
    message = broker_pb2.Handle(keeper_pid=handle.keeper_pid, canary=handle.canary)
    if handle.cuda_ipc:
        message.cuda_ipc.handle = handle.cuda_ipc
    else:
        message.descriptor.kind = _DESCRIPTOR_KINDS[handle.descriptor_kind]
    reply = broker_pb2.AcquireReply(lease=_lease(lease, None, pid=pid, now=now), handle=message)
    return reply.SerializeToString()


def returned(answer: AnswerReturned) -> bytes:
    """ReturnReply."""
    return broker_pb2.ReturnReply(
        returned_lease_ids=answer.returned, unknown_lease_ids=answer.unknown
    ).SerializeToString()


def exchanged(answer: AnswerExchange) -> bytes:
    """ExchangeReply."""
    return broker_pb2.ExchangeReply(
        spared_lease_ids=answer.spared, revoked_lease_ids=answer.revoked
    ).SerializeToString()


def host_reserved(answer: AnswerHostRoom) -> bytes:
    """ReserveHostReply."""
    room = broker_pb2.HostRoom(revision=answer.host_room.revision, nbytes=answer.host_room.nbytes)
    return broker_pb2.ReserveHostReply(host_room=room).SerializeToString()


def offered(answer: AnswerOffer) -> bytes:
    """OfferReply."""
    return broker_pb2.OfferReply(
        offered_bytes=answer.offered_bytes, lent_bytes=answer.lent_bytes
    ).SerializeToString()


def reclaimed(answer: AnswerReclaim) -> bytes:
    """ReclaimReply."""
    return broker_pb2.ReclaimReply(
        asked_bytes=answer.asked_bytes,
        revoked_bytes=answer.revoked_bytes,
        freed_bytes=answer.freed_bytes,
        quarantined_bytes=answer.quarantined_bytes,
        seconds=answer.seconds,
    ).SerializeToString()


def state(
    shown: NodeSnapshot,
    *,
    session_count: int,
    client_versions: Mapping[str, int],
    version: str,
    uptime_seconds: float,
    happenings: Iterable[Happening],
) -> bytes:
    """GetStateReply of what the caller may see."""
    pids = {session.session_id: session.process.pid for session in shown.sessions}
    return broker_pb2.GetStateReply(
        version=version,
        uptime_seconds=uptime_seconds,
        restarting=shown.restarting,
        gpus=[_gpu(gpu) for gpu in shown.gpus],
        leases=[
            _lease(
                lease,
                shown.uses.get(lease.lease_id),
                pid=pids.get(lease.session_id, 0),
                now=shown.now,
            )
            for lease in shown.leases
        ],
        tenants=[_tenant(tenant) for tenant in shown.tenants],
        events=[_event(line, now=shown.now) for line in happenings],
        host_pool_bytes=shown.host_pool_bytes,
        host_reserved_bytes=shown.host_reserved_bytes,
        sessions=session_count,
        invariant_violations=shown.invariant_violations,
        clients=[
            broker_pb2.ClientRelease(version=client, sessions=count)
            for client, count in sorted(client_versions.items())
        ],
        links=[_link(link) for link in shown.links],
    ).SerializeToString()


def state_of_gpu(snapshot: NodeSnapshot, gpu: GpuUuid) -> bytes:
    """GetStateReply of one GPU alone, which is shown to everybody."""
    gpus = [_gpu(one) for one in snapshot.gpus if one.gpu == gpu]
    return broker_pb2.GetStateReply(restarting=snapshot.restarting, gpus=gpus).SerializeToString()


def events(
    happenings: Iterable[Happening], *, epoch: str, cursor: int, is_partial: bool, now: float
) -> bytes:
    """GetEventsReply."""
    return broker_pb2.GetEventsReply(
        epoch=epoch,
        cursor=cursor,
        partial=is_partial,
        events=[_event(line, now=now) for line in happenings],
    ).SerializeToString()


def quiesced(answer: AnswerQuiesce) -> bytes:
    """QuiesceReply."""
    return broker_pb2.QuiesceReply(seconds=answer.seconds).SerializeToString()


def drained(answer: AnswerDrain) -> bytes:
    """DrainReply."""
    hits = [
        broker_pb2.DrainHit(
            gpu=hit.gpu,
            tenant=hit.tenant,
            session_id=hit.session_id,
            pid=hit.pid,
            leases=hit.leases,
            nbytes=hit.nbytes,
            copy_bytes=hit.copy_bytes,
            quarantined_bytes=hit.quarantined_bytes,
        )
        for hit in answer.hits
    ]
    return broker_pb2.DrainReply(
        gpus=answer.gpus,
        hits=hits,
        deadline_seconds=answer.deadline_seconds,
        copy_seconds=answer.copy_seconds,
        dry_run=answer.is_dry_run,
    ).SerializeToString()


def undrained(answer: AnswerUndrain) -> bytes:
    """UndrainReply."""
    return broker_pb2.UndrainReply(gpus=answer.gpus).SerializeToString()


def links_probed(answer: AnswerLinkProbe) -> bytes:
    """ProbeLinksReply."""
    probes = [
        broker_pb2.LinkProbe(
            link=broker_pb2.Link(source=one.pair.source, target=one.pair.target),
            samples=[
                broker_pb2.LinkSample(nbytes=sample.nbytes, seconds=sample.seconds)
                for sample in one.samples
            ],
            problem=one.problem,
        )
        for one in answer.outcomes
    ]
    return broker_pb2.ProbeLinksReply(probes=probes).SerializeToString()


def quotas(
    shown: Iterable[QuotaSnapshot],
    calls: CallLimits,
    *,
    connections_per_uid: int,
    sessions_per_process: int,
) -> bytes:
    """GetQuotasReply."""
    limits = broker_pb2.CallerLimits(
        connections_per_uid=connections_per_uid,
        sessions_per_process=sessions_per_process,
        calls_per_process=calls.under_way_per_process,
        calls_per_uid=calls.under_way_per_uid,
        calls_per_second_per_process=calls.per_second_per_process,
        calls_per_second_per_uid=calls.per_second_per_uid,
    )
    return broker_pb2.GetQuotasReply(
        quotas=[_quota(one) for one in shown], caller_limits=limits
    ).SerializeToString()


def quota_set(outcome: QuotaOutcome, quota: QuotaSnapshot) -> bytes:
    """SetQuotaReply."""
    return broker_pb2.SetQuotaReply(
        outcome=_OUTCOMES[outcome], quota=_quota(quota)
    ).SerializeToString()


def health_service(payload: bytes) -> str:
    """Which service a health check asks about."""
    return parsed(health_pb2.HealthCheckRequest, payload).service


def health(*, is_serving: bool) -> bytes:
    """HealthCheckResponse."""
    status = (
        health_pb2.HealthCheckResponse.SERVING
        if is_serving
        else health_pb2.HealthCheckResponse.NOT_SERVING
    )
    return health_pb2.HealthCheckResponse(status=status).SerializeToString()


def _lease(lease: Lease, use: LeaseUse | None, *, pid: int, now: float) -> broker_pb2.Lease:
    return broker_pb2.Lease(
        lease_id=lease.lease_id,
        session_id=lease.session_id,
        tenant=lease.tenant,
        lender_gpu=lease.lender,
        borrower_gpu=lease.borrower or "",
        nbytes=lease.nbytes,
        safety_class=_CLASSES[lease.safety_class],
        state=_STATES[lease.state],
        used_bytes=use.used_bytes if use else 0,
        state_seconds=max(0.0, now - lease.since),
        reason=lease.revocation.reason.value if lease.revocation else "",
        pid=pid,
    )


def _event(line: Happening, *, now: float) -> broker_pb2.EventLine:
    return broker_pb2.EventLine(
        seconds_ago=max(0.0, now - line.at),
        text=line.text,
        tenant=line.tenant or "",
        number=line.number,
    )


def _quota(quota: QuotaSnapshot) -> broker_pb2.Quota:
    return broker_pb2.Quota(
        tenant=quota.tenant,
        nbytes=quota.nbytes,
        is_default=quota.is_default,
        revision=quota.revision,
        held_bytes=quota.held_bytes,
        leases=quota.leases,
        leases_are_default=quota.leases_are_default,
        held_leases=quota.held_leases,
        sessions=quota.sessions,
        sessions_are_default=quota.sessions_are_default,
        held_sessions=quota.held_sessions,
        weight=quota.weight,
        weight_is_default=quota.weight_is_default,
        priority=quota.priority,
        priority_is_default=quota.priority_is_default,
    )


def _gpu(gpu: GpuSnapshot) -> broker_pb2.GpuState:
    return broker_pb2.GpuState(
        gpu=gpu.gpu,
        total_bytes=gpu.total_bytes,
        used_by_others_bytes=gpu.used_by_others_bytes,
        lent_bytes=gpu.lent_bytes,
        quarantined_bytes=gpu.quarantined_bytes,
        returning_bytes=gpu.returning_bytes,
        free_bytes=gpu.free_bytes,
        reserve_bytes=gpu.reserve_bytes,
        lendable_bytes=gpu.lendable_bytes,
        trouble=gpu.trouble,
        warnings=gpu.warnings,
        model=gpu.model,
        quiet_seconds=gpu.quiet_seconds,
        lending=gpu.lending.value,
        waits_for=gpu.waits_for,
        drained=gpu.is_drained,
    )


def _link(link: LinkSnapshot) -> broker_pb2.LinkState:
    return broker_pb2.LinkState(
        link=broker_pb2.Link(source=link.pair.source, target=link.pair.target),
        bytes_per_second=link.rate.bytes_per_second,
        latency_seconds=link.rate.latency_seconds,
        slow=link.slow,
    )


def _tenant(tenant: TenantSnapshot) -> broker_pb2.TenantState:
    return broker_pb2.TenantState(
        tenant=tenant.tenant,
        leased_bytes=tenant.leased_bytes,
        quota_bytes=tenant.quota_bytes,
        host_reserved_bytes=tenant.host_reserved_bytes,
        sessions=tenant.sessions,
    )
