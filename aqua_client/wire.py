"""The unary calls to the daemon and their answers, as protobuf.

Does not cover the frames of the presence link (`wire_frames`) nor channels: `calls` makes the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from aqua_protos import broker_pb2
from google.protobuf.message import DecodeError, Message

from aqua_client.records import (
    DescriptorKind,
    GpuBytes,
    Grant,
    Granted,
    HostRoom,
    OfferResult,
    ReclaimResult,
    SafetyClass,
)

__all__ = [
    "Call",
    "Grant",
    "HostRoom",
    "Malformed",
    "OfferResult",
    "ReclaimResult",
    "SafetyClass",
    "acknowledge_call",
    "acquire_call",
    "exchange_call",
    "gpu_bytes_call",
    "offer_call",
    "parse",
    "reclaim_call",
    "release_call",
    "reserve_host_call",
    "room_message",
]

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
    """One unary call, encoded: what it is, what it says, and how to read its answer."""

    method: str  # of the Broker service
    payload: bytes
    decode: Callable[[bytes], AnswerT]  # raises Malformed


def acquire_call(
    request_id: str, nbytes: int, safety_class: SafetyClass, *, wanted_bytes: int = 0
) -> Call[Granted]:
    """Borrow one slab."""
    request = broker_pb2.AcquireRequest(
        request_id=request_id,
        nbytes=nbytes,
        safety_class=_CLASS_NUMBERS[safety_class],
        wanted_bytes=wanted_bytes,
    )
    return Call("Acquire", request.SerializeToString(), _granted)


def release_call(request_id: str, lease_ids: Sequence[str], room: HostRoom) -> Call[set[str]]:
    """Give slabs back; answers the ids that were known."""
    return Call("Release", _return_payload(request_id, lease_ids, room), _returned)


def acknowledge_call(request_id: str, lease_ids: Sequence[str], room: HostRoom) -> Call[set[str]]:
    """Answer a revoke; answers the ids that were known."""
    return Call("Acknowledge", _return_payload(request_id, lease_ids, room), _returned)


def exchange_call(request_id: str, kept: Sequence[str], given: Sequence[str]) -> Call[set[str]]:
    """Have leases revoked instead of others; answers which."""
    request = broker_pb2.ExchangeRequest(
        request_id=request_id, spared_lease_ids=kept, offered_lease_ids=given
    )
    return Call("Exchange", request.SerializeToString(), _exchanged)


def reserve_host_call(request_id: str, room: HostRoom) -> Call[HostRoom]:
    """Set the host room; answers what is in force."""
    request = broker_pb2.ReserveHostRequest(request_id=request_id, host_room=room_message(room))
    return Call("ReserveHost", request.SerializeToString(), _room_in_force)


def offer_call(request_id: str, gpu: str, nbytes: int) -> Call[OfferResult]:
    """Say how much of a GPU may be lent."""
    request = broker_pb2.OfferRequest(request_id=request_id, gpu=gpu, nbytes=nbytes)
    return Call("Offer", request.SerializeToString(), _offered)


def reclaim_call(
    request_id: str, gpu: str, nbytes: int, deadline_seconds: float
) -> Call[ReclaimResult]:
    """Ask for lent memory back."""
    request = broker_pb2.ReclaimRequest(
        request_id=request_id, gpu=gpu, nbytes=nbytes, deadline_seconds=deadline_seconds
    )
    return Call("Reclaim", request.SerializeToString(), _reclaimed)


def gpu_bytes_call(gpu: str) -> Call[GpuBytes]:
    """See what of a GPU is held for borrowers."""

    def decode(payload: bytes) -> GpuBytes:
        reply = broker_pb2.GetStateReply()
        parse(reply, payload)
        found = [one for one in reply.gpus if one.gpu == gpu]  # an older daemon shows all of them
        if not found:
            msg = f"the daemon does not know {gpu}"
            raise Malformed(msg)
        return GpuBytes(
            lent_bytes=found[0].lent_bytes,
            returning_bytes=found[0].returning_bytes,
            quarantined_bytes=found[0].quarantined_bytes,
        )

    request = broker_pb2.GetStateRequest(gpu=gpu)
    return Call("GetState", request.SerializeToString(), decode)


def _granted(payload: bytes) -> Granted:
    reply = broker_pb2.AcquireReply()
    parse(reply, payload)
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
    parse(reply, payload)
    return set(reply.returned_lease_ids)


def _exchanged(payload: bytes) -> set[str]:
    reply = broker_pb2.ExchangeReply()
    parse(reply, payload)
    return set(reply.revoked_lease_ids)


def _room_in_force(payload: bytes) -> HostRoom:
    reply = broker_pb2.ReserveHostReply()
    parse(reply, payload)
    return HostRoom(revision=reply.host_room.revision, nbytes=reply.host_room.nbytes)


def _offered(payload: bytes) -> OfferResult:
    reply = broker_pb2.OfferReply()
    parse(reply, payload)
    return OfferResult(offered_bytes=reply.offered_bytes, lent_bytes=reply.lent_bytes)


def _reclaimed(payload: bytes) -> ReclaimResult:
    reply = broker_pb2.ReclaimReply()
    parse(reply, payload)
    return ReclaimResult(
        asked_bytes=reply.asked_bytes,
        revoked_bytes=reply.revoked_bytes,
        freed_bytes=reply.freed_bytes,
        quarantined_bytes=reply.quarantined_bytes,
        seconds=reply.seconds,
    )


def _return_payload(request_id: str, lease_ids: Sequence[str], room: HostRoom) -> bytes:
    request = broker_pb2.ReturnRequest(
        request_id=request_id, lease_ids=list(lease_ids), host_room=room_message(room)
    )
    return request.SerializeToString()


def room_message(room: HostRoom) -> broker_pb2.HostRoom:
    """How host room is said, in calls and in frames."""
    return broker_pb2.HostRoom(revision=room.revision, nbytes=room.nbytes)


def parse(message: Message, payload: bytes) -> None:
    """Fill *message*.

    Raises:
        Malformed: the bytes are none.
    """
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        msg = f"{len(payload)} bytes are no {message.DESCRIPTOR.name}: {error}"
        raise Malformed(msg) from error
