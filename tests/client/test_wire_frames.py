"""Frames of the presence socket: what the client sends can be read, what comes in is checked."""

from __future__ import annotations

import math

import pytest
from aqua_protos import presence_pb2

from aqua_client.counters import Counters
from aqua_client.records import (
    DescriptorArrived,
    LeasesEnded,
    LeasesLost,
    LeaseUse,
    Refusal,
    Restarting,
    RevokeNotice,
    Unheard,
    Welcome,
)
from aqua_client.wire import Malformed
from aqua_client.wire_frames import goodbye_frame, hello_frame, keepalive_frame, parse_daemon_frame
from tests.client.wire_samples import MIB, ROOM

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
