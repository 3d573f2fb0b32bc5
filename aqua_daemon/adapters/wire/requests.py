"""The API's requests: bytes of a call in, an event of the core out, or InvalidRequest.

Bytes and not messages come in because a server that lets gRPC parse can only answer INTERNAL to
what does not parse, and nobody learns what was wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from aqua_protos import broker_pb2
from google.protobuf.message import DecodeError, Message

from aqua_daemon.adapters.wire import checks
from aqua_daemon.core.errors import InvalidRequest
from aqua_daemon.core.events import (
    UNCHANGED,
    DrainRequested,
    ExchangeOffered,
    HostRoomRequested,
    LeaseRequested,
    LeasesReleased,
    LinkProbeRequested,
    OfferMade,
    QuiesceRequested,
    QuotaSet,
    ReclaimRequested,
    RevokeAcknowledged,
    Unchanged,
    UndrainRequested,
)
from aqua_daemon.core.model import (
    BrokerSettings,
    GpuPair,
    GpuUuid,
    HostRoom,
    LeaseId,
    SafetyClass,
    SessionId,
)
from aqua_daemon.core.sizes import (
    LONGEST_QUIESCE_SECONDS,
    LONGEST_REVOKE_SECONDS,
    MOST_PROBE_PAIRS,
    MOST_PROBE_SIZES,
)

_CLASSES = {
    broker_pb2.SAFETY_CLASS_STORE: SafetyClass.STORE,
    broker_pb2.SAFETY_CLASS_CACHE: SafetyClass.CACHE,
}

_MessageT = TypeVar("_MessageT", bound=Message)
_NumberT = TypeVar("_NumberT", int, float)


def parsed(kind: type[_MessageT], payload: bytes) -> _MessageT:
    """The message that *payload* holds."""
    message = kind()
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        msg = (
            f"{len(payload)} bytes do not parse as {message.DESCRIPTOR.full_name}: "
            "send a whole message of that type"
        )
        raise InvalidRequest(msg) from error
    return message


def host_room(message: broker_pb2.HostRoom) -> HostRoom:
    """What a client says it holds in host memory."""
    return HostRoom(
        revision=checks.counter("host_room.revision", message.revision),
        nbytes=checks.nbytes("host_room.nbytes", message.nbytes),
    )


def lease_requested(
    payload: bytes, *, session_id: SessionId, lease_id: LeaseId, settings: BrokerSettings
) -> LeaseRequested:
    """Acquire."""
    message = parsed(broker_pb2.AcquireRequest, payload)
    safety_class = _CLASSES.get(message.safety_class)
    if safety_class is None:
        msg = (
            f"safety_class is {message.safety_class}: say SAFETY_CLASS_STORE (1) or "
            "SAFETY_CLASS_CACHE (2)"
        )
        raise InvalidRequest(msg)
    return LeaseRequested(
        session_id=session_id,
        request_id=checks.request_id(message.request_id),
        lease_id=lease_id,
        nbytes=checks.slab_bytes(
            message.nbytes,
            smallest=settings.smallest_slab_bytes,
            largest=settings.largest_slab_bytes,
        ),
        safety_class=safety_class,
        wanted_bytes=checks.nbytes("wanted_bytes", message.wanted_bytes),
    )


def leases_released(payload: bytes, *, session_id: SessionId) -> LeasesReleased:
    """Release."""
    message = _return_request(payload)
    return LeasesReleased(
        session_id=session_id,
        request_id=checks.request_id(message.request_id),
        lease_ids=checks.lease_ids(message.lease_ids),
        host_room=_optional_host_room(message),
    )


def revoke_acknowledged(payload: bytes, *, session_id: SessionId) -> RevokeAcknowledged:
    """Acknowledge."""
    message = _return_request(payload)
    return RevokeAcknowledged(
        session_id=session_id,
        request_id=checks.request_id(message.request_id),
        lease_ids=checks.lease_ids(message.lease_ids),
        host_room=_optional_host_room(message),
    )


def exchange_offered(payload: bytes, *, session_id: SessionId) -> ExchangeOffered:
    """Exchange."""
    message = parsed(broker_pb2.ExchangeRequest, payload)
    return ExchangeOffered(
        session_id=session_id,
        request_id=checks.request_id(message.request_id),
        spared=checks.lease_ids(message.spared_lease_ids),
        offered=checks.lease_ids(message.offered_lease_ids),
    )


def host_room_requested(payload: bytes, *, session_id: SessionId) -> HostRoomRequested:
    """ReserveHost."""
    message = parsed(broker_pb2.ReserveHostRequest, payload)
    if not message.HasField("host_room"):
        raise InvalidRequest("host_room is missing: say its revision and the bytes in all")
    return HostRoomRequested(
        session_id=session_id,
        request_id=checks.request_id(message.request_id),
        host_room=host_room(message.host_room),
    )


def offer_made(payload: bytes, *, session_id: SessionId) -> OfferMade:
    """Offer."""
    message = parsed(broker_pb2.OfferRequest, payload)
    return OfferMade(
        session_id=session_id,
        request_id=checks.request_id(message.request_id),
        gpu=checks.gpu("gpu", message.gpu),
        nbytes=checks.nbytes("nbytes", message.nbytes),
    )


def reclaim_requested(payload: bytes, *, session_id: SessionId) -> ReclaimRequested:
    """Reclaim; a deadline of 0 is the standard one."""
    message = parsed(broker_pb2.ReclaimRequest, payload)
    deadline_seconds = checks.seconds(
        "deadline_seconds", message.deadline_seconds, most=checks.LONGEST_RECLAIM_SECONDS
    )
    return ReclaimRequested(
        session_id=session_id,
        request_id=checks.request_id(message.request_id),
        gpu=checks.gpu("gpu", message.gpu),
        nbytes=checks.nbytes("nbytes", message.nbytes, least=1),
        deadline_seconds=deadline_seconds or None,
    )


def quiesce_requested(payload: bytes, *, session_id: SessionId) -> QuiesceRequested:
    """Quiesce; 0 seconds ends it."""
    message = parsed(broker_pb2.QuiesceRequest, payload)
    return QuiesceRequested(
        session_id=session_id,
        request_id=checks.request_id(message.request_id),
        gpu=checks.gpu("gpu", message.gpu),
        seconds=checks.seconds("seconds", message.seconds, most=LONGEST_QUIESCE_SECONDS),
        takes_back=message.take_back,
    )


def drain_requested(payload: bytes, *, session_id: SessionId) -> DrainRequested:
    """Drain; a deadline of 0 is the standard one."""
    message = parsed(broker_pb2.DrainRequest, payload)
    deadline_seconds = checks.seconds(
        "deadline_seconds", message.deadline_seconds, most=LONGEST_REVOKE_SECONDS
    )
    return DrainRequested(
        session_id=session_id,
        request_id=checks.request_id(message.request_id),
        gpus=_gpus(message),
        deadline_seconds=deadline_seconds or None,
        is_dry_run=message.dry_run,
    )


def undrain_requested(payload: bytes, *, session_id: SessionId) -> UndrainRequested:
    """Undrain."""
    message = parsed(broker_pb2.UndrainRequest, payload)
    return UndrainRequested(
        session_id=session_id,
        request_id=checks.request_id(message.request_id),
        gpus=_gpus(message),
    )


def link_probe_requested(payload: bytes, *, session_id: SessionId) -> LinkProbeRequested:
    """ProbeLinks."""
    message = parsed(broker_pb2.ProbeLinksRequest, payload)
    links = checks.bounded("links", message.links, MOST_PROBE_PAIRS)
    sizes = checks.bounded("sizes", message.sizes, MOST_PROBE_SIZES)
    return LinkProbeRequested(
        session_id=session_id,
        request_id=checks.request_id(message.request_id),
        pairs=tuple(
            GpuPair(
                source=checks.gpu("source", link.source), target=checks.gpu("target", link.target)
            )
            for link in links
        ),
        sizes=tuple(checks.nbytes("sizes", nbytes, least=1) for nbytes in sizes),
    )


def _gpus(message: broker_pb2.DrainRequest | broker_pb2.UndrainRequest) -> tuple[GpuUuid, ...]:
    """Those that are named; none where all are meant, which must be said."""
    named = checks.bounded("gpus", message.gpus, checks.MOST_GPUS)
    if bool(named) is message.all_gpus:
        raise InvalidRequest("name gpus, or give all_gpus as true, and not both")
    return tuple(checks.gpu("gpus", gpu) for gpu in named)


def quota_set(payload: bytes, *, session_id: SessionId) -> QuotaSet:
    """SetQuota."""
    message = parsed(broker_pb2.SetQuotaRequest, payload)
    nbytes = _chosen(message, "quota", "nbytes", "use_default", checks.nbytes)
    leases = _chosen(message, "lease_quota", "leases", "default_leases", checks.count)
    sessions = _chosen(message, "session_quota", "sessions", "default_sessions", checks.count)
    weight = _chosen(message, "weight_setting", "weight", "default_weight", checks.weight)
    priority = _chosen(message, "priority_setting", "priority", "default_priority", checks.priority)
    if {nbytes, leases, sessions, weight, priority} == {UNCHANGED}:
        msg = (
            "the quota is missing: give nbytes, leases, sessions, weight or priority, or the "
            "default of one as true"
        )
        raise InvalidRequest(msg)
    return QuotaSet(
        session_id=session_id,
        request_id=checks.request_id(message.request_id),
        tenant=checks.tenant(message.tenant),
        nbytes=nbytes,
        leases=leases,
        sessions=sessions,
        weight=weight,
        priority=priority,
        revision=checks.counter("revision", message.revision) or None,
    )


def knows_deferred(payload: bytes) -> bool:
    """Whether who sends SetQuota can be told that more is held than it allows."""
    return parsed(broker_pb2.SetQuotaRequest, payload).knows_deferred


def _chosen(
    message: broker_pb2.SetQuotaRequest,
    group: str,
    value: str,
    default: str,
    check: Callable[[str, _NumberT], _NumberT],
) -> _NumberT | Unchanged | None:
    """What a oneof says: a number, None for the default, or nothing."""
    match message.WhichOneof(group):
        case name if name == value:
            return check(value, getattr(message, value))
        case name if name == default and getattr(message, default):
            return None
        case _:
            return UNCHANGED


def check_get_quotas(payload: bytes) -> None:
    """GetQuotas says nothing, but it must parse."""
    parsed(broker_pb2.GetQuotasRequest, payload)


def events_asked(payload: bytes, *, epoch: str) -> int:
    """GetEvents: the line after which to begin; 0 for a cursor of another daemon than *epoch*."""
    message = parsed(broker_pb2.GetEventsRequest, payload)
    checks.name("epoch", message.epoch)
    after = checks.counter("after", message.after)
    return after if message.epoch == epoch else 0


def gpu_looked_at(payload: bytes) -> GpuUuid | None:
    """GetState: the one GPU that is asked about; None: all there is."""
    gpu = parsed(broker_pb2.GetStateRequest, payload).gpu
    return checks.gpu("gpu", gpu) if gpu else None


def _return_request(payload: bytes) -> broker_pb2.ReturnRequest:
    message = parsed(broker_pb2.ReturnRequest, payload)
    if not message.lease_ids:
        raise InvalidRequest("lease_ids is empty: name the leases that were unmapped")
    return message


def _optional_host_room(message: broker_pb2.ReturnRequest) -> HostRoom | None:
    return host_room(message.host_room) if message.HasField("host_room") else None
