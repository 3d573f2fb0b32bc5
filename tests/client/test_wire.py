"""Messages of the client: what goes out can be read, what comes in is checked."""

from __future__ import annotations

import math
from typing import Literal

import pytest
from aqua_protos import broker_pb2, presence_pb2

from aqua_client.counters import Counters
from aqua_client.records import (
    DescriptorArrived,
    DescriptorKind,
    HostRoom,
    LeasesEnded,
    LeasesLost,
    LeaseUse,
    Refusal,
    Restarting,
    RevokeNotice,
    SafetyClass,
    Unheard,
    Welcome,
)
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
from aqua_client.wire_frames import (
    goodbye_frame,
    hello_frame,
    keepalive_frame,
    parse_daemon_frame,
)

MIB = 2**20
ROOM = HostRoom(revision=3, nbytes=5)
USE = LeaseUse(lease_id="a" * 32, used_bytes=7, copy_bytes=6, idle_seconds=1.5)


def daemon_frame(**kind: object) -> bytes:
    return presence_pb2.DaemonFrame(**kind).SerializeToString()  # type: ignore[arg-type]  # a kind


def welcome(**changed: object) -> presence_pb2.Welcome:
    message = presence_pb2.Welcome(
        protocol=1,
        session_id="s" * 32,
        token=b"t" * 32,
        tenant="uid-0",
        term_seconds=10.0,
        smallest_slab_bytes=4 * MIB,
        largest_slab_bytes=32 * MIB,
        daemon_version="1",
        ended_lease_ids=["b"],
        has_sentinel=True,
    )
    for name, value in changed.items():
        setattr(message, name, value)
    return message


def test_a_hello_says_who_and_what_is_held() -> None:
    """A re-attach names the session, its leases and its host room."""
    payload = hello_frame(
        home_gpu="SHM-0",
        sub_tenant="t",
        program="server",
        version="1",
        session_id="s",
        uses=[USE],
        room=ROOM,
    )
    hello = presence_pb2.ClientFrame.FromString(payload).hello
    assert (hello.protocol, hello.home_gpu, hello.sub_tenant) == (1, "SHM-0", "t")
    assert hello.newest_protocol == 2
    assert (hello.program, hello.version, hello.session_id) == ("server", "1", "s")
    (use,) = hello.leases
    assert (use.lease_id, use.used_bytes, use.copy_bytes) == ("a" * 32, 7, 6)
    assert use.idle_seconds == 1.5
    assert (hello.host_room.revision, hello.host_room.nbytes) == (3, 5)


def test_a_first_hello_leaves_out_what_there_is_not() -> None:
    """No home GPU and no session are empty strings."""
    payload = hello_frame(
        home_gpu=None, sub_tenant="", program="", version="", session_id=None, uses=(), room=ROOM
    )
    hello = presence_pb2.ClientFrame.FromString(payload).hello
    assert (hello.home_gpu, hello.session_id, list(hello.leases)) == ("", "", [])


def test_a_keepalive_names_every_lease() -> None:
    """What is not named, the daemon takes back."""
    keepalive = presence_pb2.ClientFrame.FromString(keepalive_frame(9, [USE], ROOM)).keepalive
    assert keepalive.sequence == 9
    assert [use.lease_id for use in keepalive.leases] == ["a" * 32]
    assert keepalive.host_room.nbytes == 5
    assert not keepalive.HasField("figures")


def test_figures_go_with_every_frame_of_a_client() -> None:
    """What was counted, whole; in a greeting what was heard of it before."""
    counters = Counters()
    counters.peer_out_bytes, counters.host_in_bytes, counters.evacuated_bytes = 1, 2, 3
    counters.promoted_bytes = 4
    counters.count_fallback("no_room")
    counters.fetch_durations["peer"].count(150_000)
    figures = counters.figures()
    hello = hello_frame(
        home_gpu=None,
        sub_tenant="",
        program="",
        version="",
        session_id=None,
        uses=(),
        room=ROOM,
        figures=figures,
    )
    sent = [hello, keepalive_frame(1, (), ROOM, figures), goodbye_frame(figures)]
    frames = [presence_pb2.ClientFrame.FromString(payload) for payload in sent]
    said = [frames[0].hello.figures, frames[1].keepalive.figures, frames[2].goodbye.figures]
    assert said[0] == said[1] == said[2]
    assert (said[0].peer_offload_bytes, said[0].host_fetch_bytes) == (1, 2)
    assert said[0].evacuated_bytes == 3
    assert said[0].promoted_bytes == 4
    assert dict(said[0].fallbacks) == {"no_room": 1}
    assert list(said[0].fetch_durations["peer"].counts) == [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert said[0].fetch_durations["peer"].sum_nanoseconds == 150_000


def test_goodbye_is_a_frame_of_its_own() -> None:
    """It has nothing to say but that."""
    assert presence_pb2.ClientFrame.FromString(goodbye_frame()).WhichOneof("kind") == "goodbye"


def test_a_welcome_is_read_whole() -> None:
    """Identity, term, slab sizes, and the leases that have ended."""
    assert parse_daemon_frame(daemon_frame(welcome=welcome()), now=0.0) == Welcome(
        session_id="s" * 32,
        token=b"t" * 32,
        tenant="uid-0",
        term_seconds=10.0,
        smallest_slab_bytes=4 * MIB,
        largest_slab_bytes=32 * MIB,
        daemon_version="1",
        ended_lease_ids=("b",),
        has_sentinel=True,
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"session_id": ""},
        {"token": b""},
        {"term_seconds": 0.0},
        {"term_seconds": -1.0},
        {"term_seconds": math.nan},
        {"term_seconds": math.inf},
        {"smallest_slab_bytes": 0},
        {"largest_slab_bytes": MIB},
    ],
)
def test_a_welcome_that_cannot_be_meant_is_refused(changed: dict[str, object]) -> None:
    """A term of nothing would be a keepalive storm, a missing token a session without calls."""
    with pytest.raises(Malformed):
        parse_daemon_frame(daemon_frame(welcome=welcome(**changed)), now=0.0)


def test_a_revokes_deadline_counts_from_now() -> None:
    """Seconds on the wire, a time of our own clock inside."""
    revoke = presence_pb2.Revoke(
        lender_gpu="SHM-1", nbytes=8, reason="reclaimed", deadline_seconds=2.0, lease_ids=["a"]
    )
    assert parse_daemon_frame(daemon_frame(revoke=revoke), now=100.0) == RevokeNotice(
        lender_gpu="SHM-1", nbytes=8, reason="reclaimed", deadline=102.0, lease_ids=("a",)
    )


def test_a_deadline_in_the_past_is_now() -> None:
    """What is sent again after its deadline is due at once."""
    revoke = presence_pb2.Revoke(deadline_seconds=-3.0)
    notice = parse_daemon_frame(daemon_frame(revoke=revoke), now=100.0)
    assert isinstance(notice, RevokeNotice)
    assert notice.deadline == 100.0


def test_a_revoke_without_a_deadline_is_refused() -> None:
    """NaN is no time."""
    payload = daemon_frame(revoke=presence_pb2.Revoke(deadline_seconds=math.nan))
    with pytest.raises(Malformed, match="deadline"):
        parse_daemon_frame(payload, now=0.0)


@pytest.mark.parametrize(
    ("payload", "frame"),
    [
        (
            daemon_frame(refusal=presence_pb2.Refusal(code="NOT_FOUND", message="gone")),
            Refusal(code="NOT_FOUND", message="gone"),
        ),
        (
            daemon_frame(refusal=presence_pb2.Refusal(code="X", reason="protocol")),
            Refusal(code="X", message="", reason="protocol"),
        ),
        (
            daemon_frame(refusal=presence_pb2.Refusal(code="X", reason="of_a_later_release")),
            Refusal(code="X", message="", reason="refused"),
        ),
        (
            daemon_frame(keepalive_reply=presence_pb2.KeepaliveReply(ended_lease_ids=["a"])),
            LeasesEnded(lease_ids=("a",)),
        ),
        (
            daemon_frame(slab_descriptor=presence_pb2.SlabDescriptor(lease_id="a")),
            DescriptorArrived(lease_id="a"),
        ),
        (
            daemon_frame(leases_lost=presence_pb2.LeasesLost(lease_ids=["a"], reason="keeper")),
            LeasesLost(lease_ids=("a",), reason="keeper"),
        ),
        (daemon_frame(restarting=presence_pb2.Restarting()), Restarting()),
        (b"", Unheard()),
        (b"\xfa\x01\x00", Unheard()),  # field 31: a newer daemon's
    ],
)
def test_each_push_becomes_its_record(payload: bytes, frame: object) -> None:
    """One record for each kind of frame; kinds that are not known yet are passed over."""
    assert parse_daemon_frame(payload, now=0.0) == frame


@pytest.mark.parametrize("payload", [b"\xff", b"\x0a\x7f", bytes(100)])
def test_noise_is_no_frame(payload: bytes) -> None:
    """Bytes that are no message raise one kind of error."""
    with pytest.raises(Malformed):
        parse_daemon_frame(payload, now=0.0)


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
