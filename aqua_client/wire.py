"""The messages that the client and the daemon exchange, as protobuf; nothing else here sees it.

Does not cover sockets and channels: `link` carries the frames, `calls` makes the calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from aqua_protos import broker_pb2, presence_pb2
from aqua_protos.agreement import SPOKEN
from google.protobuf.message import DecodeError, Message

from aqua_client.counters import Figures
from aqua_client.records import (
    OTHER_PROTOCOL,
    DaemonFrame,
    DescriptorArrived,
    DescriptorKind,
    Grant,
    Granted,
    HostRoom,
    LeasesEnded,
    LeasesLost,
    LeaseUse,
    OfferResult,
    ReclaimResult,
    Refusal,
    Restarting,
    RevokeNotice,
    SafetyClass,
    Unheard,
    Welcome,
)

__all__ = [
    "Call",
    "Grant",
    "HostRoom",
    "LeaseUse",
    "Malformed",
    "OfferResult",
    "ReclaimResult",
    "RevokeNotice",
    "SafetyClass",
    "acknowledge_call",
    "acquire_call",
    "goodbye_frame",
    "hello_frame",
    "keepalive_frame",
    "offer_call",
    "parse_daemon_frame",
    "reclaim_call",
    "release_call",
    "reserve_host_call",
]

_SERVICE = "/aqua.broker.v1.Broker/"

AnswerT = TypeVar("AnswerT")

_CLASS_NUMBERS = {
    SafetyClass.STORE: broker_pb2.SAFETY_CLASS_STORE,
    SafetyClass.CACHE: broker_pb2.SAFETY_CLASS_CACHE,
}
_CLASSES = {number: one for one, number in _CLASS_NUMBERS.items()}

_DESCRIPTOR_KINDS = {
    broker_pb2.DESCRIPTOR_KIND_UNSPECIFIED: DescriptorKind.SHARED_MEMORY,  # all there once was
    broker_pb2.DESCRIPTOR_KIND_SHARED_MEMORY: DescriptorKind.SHARED_MEMORY,
    broker_pb2.DESCRIPTOR_KIND_CUDA_VMM: DescriptorKind.CUDA_VMM,
}


class Malformed(ValueError):
    """The daemon said something that is no message, or one that can't be meant."""


@dataclass(frozen=True, slots=True)
class Call(Generic[AnswerT]):
    """One unary call, encoded: where it goes, what it says, and how to read its answer."""

    path: str
    payload: bytes
    decode: Callable[[bytes], AnswerT]  # raises Malformed


def acquire_call(request_id: str, nbytes: int, safety_class: SafetyClass) -> Call[Granted]:
    """Borrow one slab."""
    request = broker_pb2.AcquireRequest(
        request_id=request_id, nbytes=nbytes, safety_class=_CLASS_NUMBERS[safety_class]
    )
    return Call(_SERVICE + "Acquire", request.SerializeToString(), _granted)


def release_call(request_id: str, lease_ids: Sequence[str], room: HostRoom) -> Call[set[str]]:
    """Give slabs back; answers the ids that were known."""
    return Call(_SERVICE + "Release", _return_payload(request_id, lease_ids, room), _returned)


def acknowledge_call(request_id: str, lease_ids: Sequence[str], room: HostRoom) -> Call[set[str]]:
    """Answer a revoke; answers the ids that were known."""
    return Call(_SERVICE + "Acknowledge", _return_payload(request_id, lease_ids, room), _returned)


def reserve_host_call(request_id: str, room: HostRoom) -> Call[HostRoom]:
    """Set the host room; answers what is in force."""
    request = broker_pb2.ReserveHostRequest(request_id=request_id, host_room=_room(room))
    return Call(_SERVICE + "ReserveHost", request.SerializeToString(), _room_in_force)


def offer_call(request_id: str, gpu: str, nbytes: int) -> Call[OfferResult]:
    """Say how much of a GPU may be lent."""
    request = broker_pb2.OfferRequest(request_id=request_id, gpu=gpu, nbytes=nbytes)
    return Call(_SERVICE + "Offer", request.SerializeToString(), _offered)


def reclaim_call(
    request_id: str, gpu: str, nbytes: int, deadline_seconds: float
) -> Call[ReclaimResult]:
    """Ask for lent memory back."""
    request = broker_pb2.ReclaimRequest(
        request_id=request_id, gpu=gpu, nbytes=nbytes, deadline_seconds=deadline_seconds
    )
    return Call(_SERVICE + "Reclaim", request.SerializeToString(), _reclaimed)


def hello_frame(
    *,
    home_gpu: str | None,
    sub_tenant: str,
    program: str,
    version: str,
    session_id: str | None,
    uses: Sequence[LeaseUse],
    room: HostRoom,
    figures: Figures | None = None,
) -> bytes:
    """The first frame; with a *session_id* of before, to re-attach; *figures* were heard before."""
    hello = presence_pb2.Hello(
        protocol=SPOKEN.oldest,
        newest_protocol=SPOKEN.newest,
        home_gpu=home_gpu or "",
        sub_tenant=sub_tenant,
        program=program,
        version=version,
        session_id=session_id or "",
        leases=_uses(uses),
        host_room=_room(room),
        figures=None if figures is None else _figures(figures),
    )
    return presence_pb2.ClientFrame(hello=hello).SerializeToString()


def keepalive_frame(
    sequence: int, uses: Sequence[LeaseUse], room: HostRoom, figures: Figures | None = None
) -> bytes:
    """Once each third of a term."""
    keepalive = presence_pb2.Keepalive(
        sequence=sequence,
        leases=_uses(uses),
        host_room=_room(room),
        figures=None if figures is None else _figures(figures),
    )
    return presence_pb2.ClientFrame(keepalive=keepalive).SerializeToString()


def goodbye_frame(figures: Figures | None = None) -> bytes:
    """The last frame."""
    goodbye = presence_pb2.Goodbye(figures=None if figures is None else _figures(figures))
    return presence_pb2.ClientFrame(goodbye=goodbye).SerializeToString()


def parse_daemon_frame(payload: bytes, *, now: float) -> DaemonFrame:
    """What a frame of the daemon says.

    Raises:
        Malformed: it is none, or can't be meant.
    """
    frame = presence_pb2.DaemonFrame()
    _parse(frame, payload)
    match frame.WhichOneof("kind"):
        case "welcome":
            return _welcome(frame.welcome)
        case "refusal":
            refusal = frame.refusal
            reason = OTHER_PROTOCOL if refusal.reason == OTHER_PROTOCOL else "refused"
            return Refusal(code=refusal.code, message=refusal.message, reason=reason)
        case "keepalive_reply":
            return LeasesEnded(lease_ids=tuple(frame.keepalive_reply.ended_lease_ids))
        case "revoke":
            return _notice(frame.revoke, now=now)
        case "slab_descriptor":
            return DescriptorArrived(lease_id=frame.slab_descriptor.lease_id)
        case "leases_lost":
            lost = frame.leases_lost
            return LeasesLost(lease_ids=tuple(lost.lease_ids), reason=lost.reason)
        case "restarting":
            return Restarting()
        case _:
            return Unheard()  # a newer daemon's kind, or none at all


def _welcome(welcome: presence_pb2.Welcome) -> Welcome | Refusal:
    if not SPOKEN.oldest <= welcome.protocol <= SPOKEN.newest:
        msg = (
            f"the daemon (version {welcome.daemon_version}) speaks protocol {welcome.protocol}, "
            f"this client {SPOKEN}: bring both to releases that are at most one apart"
        )
        return Refusal(code="", message=msg, reason=OTHER_PROTOCOL)
    seconds = welcome.term_seconds
    sizes = (welcome.smallest_slab_bytes, welcome.largest_slab_bytes)
    if not welcome.session_id or not welcome.token:
        msg = "a welcome without a session id or a token"
        raise Malformed(msg)
    if not math.isfinite(seconds) or seconds <= 0 or not 0 < sizes[0] <= sizes[1]:
        msg = f"a welcome with a term of {seconds} s and slabs of {sizes[0]} to {sizes[1]} bytes"
        raise Malformed(msg)
    return Welcome(
        session_id=welcome.session_id,
        token=welcome.token,
        tenant=welcome.tenant,
        term_seconds=seconds,
        smallest_slab_bytes=sizes[0],
        largest_slab_bytes=sizes[1],
        daemon_version=welcome.daemon_version,
        ended_lease_ids=tuple(welcome.ended_lease_ids),
        has_sentinel=welcome.has_sentinel,
    )


def _notice(revoke: presence_pb2.Revoke, *, now: float) -> RevokeNotice:
    if not math.isfinite(revoke.deadline_seconds):
        msg = f"a revoke with a deadline of {revoke.deadline_seconds} s"
        raise Malformed(msg)
    return RevokeNotice(
        lender_gpu=revoke.lender_gpu,
        nbytes=revoke.nbytes,
        reason=revoke.reason,
        deadline=now + max(0.0, revoke.deadline_seconds),
        lease_ids=tuple(revoke.lease_ids),
    )


def _granted(payload: bytes) -> Granted:
    reply = broker_pb2.AcquireReply()
    _parse(reply, payload)
    kind = reply.handle.WhichOneof("kind")
    lease = reply.lease
    if kind is None or not lease.lease_id or lease.nbytes <= 0:
        msg = "a grant without a handle, a lease id or a size"
        raise Malformed(msg)
    if lease.safety_class not in _CLASSES:
        msg = f"a grant of the unknown safety class {lease.safety_class}"
        raise Malformed(msg)
    if reply.handle.descriptor.kind not in _DESCRIPTOR_KINDS:
        msg = f"a grant with a descriptor of the unknown kind {reply.handle.descriptor.kind}"
        raise Malformed(msg)
    grant = Grant(
        lease_id=lease.lease_id,
        lender_gpu=lease.lender_gpu,
        nbytes=lease.nbytes,
        safety_class=_CLASSES[lease.safety_class],
        keeper_pid=reply.handle.keeper_pid,
        canary=reply.handle.canary,
        descriptor=None,
        cuda_ipc=reply.handle.cuda_ipc.handle,
        descriptor_kind=_DESCRIPTOR_KINDS[reply.handle.descriptor.kind],
    )
    return Granted(grant=grant, by_descriptor=kind == "descriptor")


def _returned(payload: bytes) -> set[str]:
    reply = broker_pb2.ReturnReply()
    _parse(reply, payload)
    return set(reply.returned_lease_ids)


def _room_in_force(payload: bytes) -> HostRoom:
    reply = broker_pb2.ReserveHostReply()
    _parse(reply, payload)
    return HostRoom(revision=reply.host_room.revision, nbytes=reply.host_room.nbytes)


def _offered(payload: bytes) -> OfferResult:
    reply = broker_pb2.OfferReply()
    _parse(reply, payload)
    return OfferResult(offered_bytes=reply.offered_bytes, lent_bytes=reply.lent_bytes)


def _reclaimed(payload: bytes) -> ReclaimResult:
    reply = broker_pb2.ReclaimReply()
    _parse(reply, payload)
    return ReclaimResult(
        asked_bytes=reply.asked_bytes,
        revoked_bytes=reply.revoked_bytes,
        freed_bytes=reply.freed_bytes,
        quarantined_bytes=reply.quarantined_bytes,
        seconds=reply.seconds,
    )


def _return_payload(request_id: str, lease_ids: Sequence[str], room: HostRoom) -> bytes:
    request = broker_pb2.ReturnRequest(
        request_id=request_id, lease_ids=list(lease_ids), host_room=_room(room)
    )
    return request.SerializeToString()


def _uses(uses: Sequence[LeaseUse]) -> list[presence_pb2.LeaseUse]:
    return [
        presence_pb2.LeaseUse(
            lease_id=use.lease_id,
            used_bytes=use.used_bytes,
            copy_bytes=use.copy_bytes,
            idle_seconds=use.idle_seconds,
        )
        for use in uses
    ]


def _room(room: HostRoom) -> broker_pb2.HostRoom:
    return broker_pb2.HostRoom(revision=room.revision, nbytes=room.nbytes)


def _figures(figures: Figures) -> presence_pb2.ClientFigures:
    message = presence_pb2.ClientFigures(
        peer_offload_bytes=figures.peer_offload_bytes,
        host_offload_bytes=figures.host_offload_bytes,
        peer_fetch_bytes=figures.peer_fetch_bytes,
        host_fetch_bytes=figures.host_fetch_bytes,
        evacuated_bytes=figures.evacuated_bytes,
        fallbacks=figures.fallbacks,
    )
    for tier, durations in figures.fetch_durations.items():
        message.fetch_durations[tier].counts.extend(durations.counts)
        message.fetch_durations[tier].sum_nanoseconds = durations.sum_nanoseconds
    return message


def _parse(message: Message, payload: bytes) -> None:
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        msg = f"{len(payload)} bytes are no {message.DESCRIPTOR.name}: {error}"
        raise Malformed(msg) from error
