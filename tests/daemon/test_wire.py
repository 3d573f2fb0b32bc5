"""Messages to events and answers to messages, without a socket. Bad ones: test_bad_calls, _frames."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from aqua_protos import broker_pb2, presence_pb2
from aqua_protos.agreement import Protocols
from hypothesis import given, settings
from hypothesis import strategies as st

from aqua_daemon.adapters.happenings import Happening
from aqua_daemon.adapters.wire import checks, frames, replies, requests
from aqua_daemon.core import events, instructions
from aqua_daemon.core.errors import InvalidRequest
from aqua_daemon.core.model import (
    HostRoom,
    LeaseId,
    LeaseState,
    Revocation,
    RevokeReason,
    SafetyClass,
    SessionId,
)
from aqua_daemon.ports import SlabHandle
from tests.daemon.in_process import SETTINGS
from tests.daemon.samples import (
    GPU,
    LEASE,
    LEASE_ID,
    MIB,
    PROCESS,
    REQUEST_ID,
    ROOM,
    SESSION_ID,
    SNAPSHOT,
    TENANT,
    USE,
)

ROOM_MESSAGE = broker_pb2.HostRoom(revision=ROOM.revision, nbytes=ROOM.nbytes)
CLASSES = {
    broker_pb2.SAFETY_CLASS_STORE: SafetyClass.STORE,
    broker_pb2.SAFETY_CLASS_CACHE: SafetyClass.CACHE,
}


def asked(payload: bytes) -> events.LeaseRequested:
    return requests.lease_requested(
        payload, session_id=SESSION_ID, lease_id=LEASE_ID, settings=SETTINGS
    )


@pytest.mark.parametrize(("number", "safety_class"), CLASSES.items())
def test_acquire_becomes_a_request_for_a_lease(number: int, safety_class: SafetyClass) -> None:
    """Session and lease id come from the daemon, everything else from the message."""
    message = broker_pb2.AcquireRequest(
        request_id=REQUEST_ID, nbytes=4 * MIB, safety_class=broker_pb2.SafetyClass.Name(number)
    )
    assert asked(message.SerializeToString()) == events.LeaseRequested(
        session_id=SESSION_ID,
        request_id=REQUEST_ID,
        lease_id=LEASE_ID,
        nbytes=4 * MIB,
        safety_class=safety_class,
    )


def test_fields_of_a_later_release_are_passed_over() -> None:
    """A client one release ahead is understood by what both know."""
    message = broker_pb2.AcquireRequest(
        request_id=REQUEST_ID, nbytes=4 * MIB, safety_class="SAFETY_CLASS_STORE"
    )
    later = b"\xf2\x07\x03new"  # field 126
    assert asked(message.SerializeToString() + later).nbytes == 4 * MIB


def test_returns_carry_leases_and_what_is_held_after_them() -> None:
    """Release and Acknowledge differ in the event alone; without host room nothing is stated."""
    message = broker_pb2.ReturnRequest(
        request_id=REQUEST_ID, lease_ids=[LEASE_ID], host_room=ROOM_MESSAGE
    )
    released = requests.leases_released(message.SerializeToString(), session_id=SESSION_ID)
    assert released == events.LeasesReleased(
        session_id=SESSION_ID, request_id=REQUEST_ID, lease_ids=(LEASE_ID,), host_room=ROOM
    )
    message.ClearField("host_room")
    payload = message.SerializeToString()
    acknowledged = requests.revoke_acknowledged(payload, session_id=SESSION_ID)
    assert acknowledged == events.RevokeAcknowledged(
        session_id=SESSION_ID, request_id=REQUEST_ID, lease_ids=(LEASE_ID,), host_room=None
    )


def test_host_room_offer_and_reclaim_become_events() -> None:
    """A deadline of 0 is the standard one; an offer of 0 lends nothing more."""
    room = broker_pb2.ReserveHostRequest(request_id=REQUEST_ID, host_room=ROOM_MESSAGE)
    reserve = requests.host_room_requested(room.SerializeToString(), session_id=SESSION_ID)
    assert reserve.host_room == ROOM
    offer = broker_pb2.OfferRequest(request_id=REQUEST_ID, gpu=GPU, nbytes=0)
    made = requests.offer_made(offer.SerializeToString(), session_id=SESSION_ID)
    assert (made.gpu, made.nbytes) == (GPU, 0)
    for given_seconds, meant_seconds in ((0.0, None), (1.5, 1.5)):
        message = broker_pb2.ReclaimRequest(
            request_id=REQUEST_ID, gpu=GPU, nbytes=1, deadline_seconds=given_seconds
        )
        reclaim = requests.reclaim_requested(message.SerializeToString(), session_id=SESSION_ID)
        assert reclaim.deadline_seconds == meant_seconds


def test_client_frames_become_records() -> None:
    """Hello, keepalive and goodbye, with leases and host room in the core's types."""
    use = presence_pb2.LeaseUse(
        lease_id=USE.lease_id,
        used_bytes=USE.used_bytes,
        copy_bytes=USE.copy_bytes,
        idle_seconds=USE.idle_seconds,
    )
    hello = presence_pb2.Hello(
        protocol=1,
        newest_protocol=2,
        features=["a-feature"],
        home_gpu=GPU,
        sub_tenant="blue",
        program="vllm serve",
        version="1.2",
        session_id=SESSION_ID,
        leases=[use],
        host_room=ROOM_MESSAGE,
    )
    frame = presence_pb2.ClientFrame(hello=hello)
    assert frames.client_frame(frame.SerializeToString()) == frames.Hello(
        protocols=Protocols(1, 2),
        home_gpu=GPU,
        sub_tenant="blue",
        program="vllm serve",
        version="1.2",
        session_id=SESSION_ID,
        uses=(USE,),
        host_room=ROOM,
    )
    hello.features.append("observer")
    frame = presence_pb2.ClientFrame(hello=hello)
    found = frames.client_frame(frame.SerializeToString())
    assert isinstance(found, frames.Hello)
    assert found.is_observer
    keepalive = presence_pb2.Keepalive(sequence=9, leases=[use], host_room=ROOM_MESSAGE)
    frame = presence_pb2.ClientFrame(keepalive=keepalive)
    assert frames.client_frame(frame.SerializeToString()) == frames.Keepalive(
        sequence=9, uses=(USE,), host_room=ROOM
    )
    frame = presence_pb2.ClientFrame(goodbye=presence_pb2.Goodbye())
    assert frames.client_frame(frame.SerializeToString()) == frames.Goodbye()


def test_a_bare_hello_has_no_home_no_session_and_no_room() -> None:
    """What is left out is none, not an empty name."""
    frame = presence_pb2.ClientFrame(hello=presence_pb2.Hello(protocol=1))
    hello = frames.client_frame(frame.SerializeToString())
    assert isinstance(hello, frames.Hello)
    assert hello.home_gpu is None
    assert hello.session_id is None
    assert hello.protocols == Protocols(1, 1)
    assert hello.host_room == HostRoom(revision=0, nbytes=0)


def test_a_keepalive_of_ten_thousand_leases_fits() -> None:
    """The largest message that is allowed fits a frame and passes the checks."""
    uses = [presence_pb2.LeaseUse(lease_id=f"{n:032x}", used_bytes=n) for n in range(10_000)]
    keepalive = presence_pb2.Keepalive(sequence=1, leases=uses)
    payload = presence_pb2.ClientFrame(keepalive=keepalive).SerializeToString()
    assert len(payload) < 2**20
    frame = frames.client_frame(payload)
    assert isinstance(frame, frames.Keepalive)
    assert len(frame.uses) == 10_000


PARSERS: dict[str, Callable[[bytes], object]] = {
    "acquire": asked,
    "release": lambda payload: requests.leases_released(payload, session_id=SESSION_ID),
    "reserve": lambda payload: requests.host_room_requested(payload, session_id=SESSION_ID),
    "offer": lambda payload: requests.offer_made(payload, session_id=SESSION_ID),
    "reclaim": lambda payload: requests.reclaim_requested(payload, session_id=SESSION_ID),
    "frame": frames.client_frame,
    "health": replies.health_service,
}


@given(payload=st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_the_wire_fail_otherwise(payload: bytes) -> None:
    """Whatever comes is an event or an InvalidRequest; nothing else is ever raised."""
    for parser in PARSERS.values():
        with contextlib.suppress(InvalidRequest):
            parser(payload)


@given(text=st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_only_ids_pass_as_ids(text: str) -> None:
    """32 lower-case hexadecimal digits; a message shows what came, short and printable."""
    if len(text) == 32 and set(text) <= set("0123456789abcdef"):
        assert checks.request_id(text) == text
        return
    with pytest.raises(InvalidRequest) as caught:
        checks.request_id(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("state", LeaseState)
def test_every_state_of_a_lease_is_shown(state: LeaseState) -> None:
    """Each has its number on the wire, with how long it has lasted and why."""
    revocation = Revocation(reason=RevokeReason.RECLAIM, started_at=1.0, deadline=3.0)
    lease = replace(LEASE, state=state, revocation=revocation)
    payload = replies.state(
        replace(SNAPSHOT, leases=(lease,), uses={LEASE_ID: USE}),
        session_count=3,
        client_versions={"0.2.0": 2, "0.1.0": 1},
        version="1",
        uptime_seconds=5.0,
        happenings=[Happening(number=7, at=SNAPSHOT.now - 2.0, tenant=TENANT, text="text")],
    )
    reply = broker_pb2.GetStateReply.FromString(payload)
    (shown,) = reply.leases
    assert broker_pb2.LeaseState.Name(shown.state) == f"LEASE_STATE_{state.name}"
    assert (shown.pid, shown.reason, shown.used_bytes) == (PROCESS.pid, "reclaim", 5)
    assert shown.state_seconds == SNAPSHOT.now - LEASE.since
    assert [(one.version, one.sessions) for one in reply.clients] == [("0.1.0", 1), ("0.2.0", 2)]
    assert reply.gpus[0].lendable_bytes == 30 * MIB
    assert reply.tenants[0].tenant == TENANT
    (event,) = reply.events
    assert (event.seconds_ago, event.text, event.tenant, event.number) == (2.0, "text", TENANT, 7)


def test_a_grant_says_how_the_slab_is_reached() -> None:
    """One of the two kinds of handle, the keeper's pid and the canary."""
    handle = SlabHandle(keeper_pid=7, canary=b"c" * 64, descriptor=3)
    payload = replies.acquired(LEASE, handle, pid=42, now=LEASE.since)
    reply = broker_pb2.AcquireReply.FromString(payload)
    assert reply.handle.WhichOneof("kind") == "descriptor"
    assert (reply.handle.keeper_pid, reply.handle.canary) == (7, b"c" * 64)
    assert (reply.lease.lease_id, reply.lease.pid) == (LEASE_ID, 42)
    assert reply.lease.safety_class == broker_pb2.SAFETY_CLASS_STORE
    cuda = SlabHandle(keeper_pid=7, canary=b"", cuda_ipc=b"h" * 64)
    payload = replies.acquired(LEASE, cuda, pid=42, now=LEASE.since)
    assert broker_pb2.AcquireReply.FromString(payload).handle.cuda_ipc.handle == b"h" * 64


def test_daemon_frames_say_what_the_core_said() -> None:
    """Keepalive replies, revokes, losses and refusals."""
    other = LeaseId("0c" * 16)
    answer = instructions.AnswerKeepalive(
        session_id=SessionId(SESSION_ID), request_id=REQUEST_ID, ended=(LEASE_ID,), unheard=(other,)
    )
    frame = presence_pb2.DaemonFrame.FromString(frames.keepalive_reply(3, answer))
    assert frame.keepalive_reply.sequence == 3
    assert list(frame.keepalive_reply.ended_lease_ids) == [LEASE_ID]
    assert list(frame.keepalive_reply.unheard_lease_ids) == [other]
    order = instructions.TellLost(session_id=SESSION_ID, lease_ids=(LEASE_ID,), reason="gone")
    frame = presence_pb2.DaemonFrame.FromString(frames.leases_lost(order))
    assert (list(frame.leases_lost.lease_ids), frame.leases_lost.reason) == ([LEASE_ID], "gone")
    frame = presence_pb2.DaemonFrame.FromString(
        frames.refusal("UNAVAILABLE", "later", reason="restarting")
    )
    assert (frame.refusal.code, frame.refusal.message) == ("UNAVAILABLE", "later")
    assert frame.refusal.reason == "restarting"
