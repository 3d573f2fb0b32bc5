"""Calls of the client: what goes out can be read, what comes in is checked."""

from __future__ import annotations

from typing import Literal

import pytest
from aqua_protos import broker_pb2

from aqua_client.records import DescriptorKind, SafetyClass
from aqua_client.wire import (
    Call,
    Malformed,
    acknowledge_call,
    acquire_call,
    offer_call,
    reclaim_call,
    release_call,
    reserve_host_call,
)
from tests.client.wire_samples import MIB, ROOM


def test_an_acquire_says_size_and_class() -> None:
    """And its answer becomes a grant that still lacks its descriptor."""
    call = acquire_call("r", 4 * MIB, SafetyClass.CACHE, wanted_bytes=9 * MIB)
    request = broker_pb2.AcquireRequest.FromString(call.payload)
    assert (request.request_id, request.nbytes, request.wanted_bytes) == ("r", 4 * MIB, 9 * MIB)
    assert request.safety_class == broker_pb2.SAFETY_CLASS_CACHE
    granted = call.decode(grant_reply().SerializeToString())
    assert granted.by_descriptor
    assert granted.grant.lease_id == "a"
    assert granted.grant.safety_class is SafetyClass.CACHE
    assert (granted.grant.keeper_pid, granted.grant.canary) == (7, b"c")
    assert (granted.grant.descriptor, granted.grant.cuda_ipc) == (None, b"")


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (broker_pb2.DESCRIPTOR_KIND_UNSPECIFIED, DescriptorKind.SHARED_MEMORY),
        (broker_pb2.DESCRIPTOR_KIND_SHARED_MEMORY, DescriptorKind.SHARED_MEMORY),
        (broker_pb2.DESCRIPTOR_KIND_CUDA_VMM, DescriptorKind.CUDA_VMM),
    ],
)
def test_a_grant_says_what_its_descriptor_is(
    number: broker_pb2.DescriptorKind, kind: DescriptorKind
) -> None:
    """An older daemon does not say, and has shared memory alone."""
    reply = grant_reply()
    reply.handle.descriptor.kind = number
    granted = acquire_call("r", 1, SafetyClass.STORE).decode(reply.SerializeToString())
    assert granted.grant.descriptor_kind is kind


def test_a_descriptor_of_an_unknown_kind_is_no_grant() -> None:
    """A newer daemon's; to map it as something else would be a guess."""
    reply = grant_reply()
    reply.handle.descriptor.kind = 99  # type: ignore[assignment]  # what a newer daemon may send
    with pytest.raises(Malformed, match="kind 99"):
        acquire_call("r", 1, SafetyClass.STORE).decode(reply.SerializeToString())


def test_a_cuda_grant_carries_its_handle() -> None:
    """No descriptor is to come."""
    reply = grant_reply()
    reply.handle.cuda_ipc.handle = b"h" * 64
    granted = acquire_call("r", 1, SafetyClass.CACHE).decode(reply.SerializeToString())
    assert not granted.by_descriptor
    assert granted.grant.cuda_ipc == b"h" * 64


@pytest.mark.parametrize("missing", ["handle", "lease"])
def test_a_grant_without_its_parts_is_refused(missing: Literal["handle", "lease"]) -> None:
    """Half a grant is none."""
    reply = grant_reply()
    reply.ClearField(missing)
    with pytest.raises(Malformed):
        acquire_call("r", 1, SafetyClass.STORE).decode(reply.SerializeToString())


def test_a_grant_of_an_unknown_class_is_refused() -> None:
    """A slab whose promise is not known can't hold anything."""
    reply = grant_reply()
    reply.lease.ClearField("safety_class")
    with pytest.raises(Malformed, match="class"):
        acquire_call("r", 1, SafetyClass.STORE).decode(reply.SerializeToString())


@pytest.mark.parametrize(
    "call", [release_call("r", ["a", "b"], ROOM), acknowledge_call("r", ["a", "b"], ROOM)]
)
def test_returns_answer_the_known_ids(call: Call[set[str]]) -> None:
    """Both say the leases and the room after them, and tell which were known."""
    request = broker_pb2.ReturnRequest.FromString(call.payload)
    assert list(request.lease_ids) == ["a", "b"]
    assert request.host_room.revision == 3
    reply = broker_pb2.ReturnReply(returned_lease_ids=["a"], unknown_lease_ids=["b"])
    assert call.decode(reply.SerializeToString()) == {"a"}


def test_host_room_goes_out_and_comes_back() -> None:
    """The answer is what is in force."""
    call = reserve_host_call("r", ROOM)
    request = broker_pb2.ReserveHostRequest.FromString(call.payload)
    reply = broker_pb2.ReserveHostReply(host_room=request.host_room)
    assert call.decode(reply.SerializeToString()) == ROOM


def test_offers_and_reclaims_carry_every_figure() -> None:
    """What a producer asks and what came of it."""
    offer = broker_pb2.OfferReply(offered_bytes=5, lent_bytes=2)
    offered = offer_call("r", "SHM-1", 5).decode(offer.SerializeToString())
    assert (offered.offered_bytes, offered.lent_bytes) == (5, 2)
    call = reclaim_call("r", "SHM-1", 5, 1.5)
    request = broker_pb2.ReclaimRequest.FromString(call.payload)
    assert (request.gpu, request.nbytes, request.deadline_seconds) == ("SHM-1", 5, 1.5)
    reply = broker_pb2.ReclaimReply(
        asked_bytes=5, revoked_bytes=8, freed_bytes=6, quarantined_bytes=2, seconds=0.5
    )
    result = call.decode(reply.SerializeToString())
    assert (result.asked_bytes, result.revoked_bytes) == (5, 8)
    assert (result.freed_bytes, result.quarantined_bytes, result.seconds) == (6, 2, 0.5)
    assert not result.complete


def grant_reply() -> broker_pb2.AcquireReply:
    lease = broker_pb2.Lease(
        lease_id="a", lender_gpu="SHM-1", nbytes=4 * MIB, safety_class=broker_pb2.SAFETY_CLASS_CACHE
    )
    handle = broker_pb2.Handle(descriptor=broker_pb2.DescriptorHandle(), keeper_pid=7, canary=b"c")
    return broker_pb2.AcquireReply(lease=lease, handle=handle)
