"""The frames that the client and the daemon exchange on the presence link, as protobuf.

Does not cover the unary calls (`wire`) nor sockets: `link` carries the frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aqua_protos import presence_pb2
from aqua_protos.agreement import CALLS, CLIENT_FEATURES, LEASE_EXCHANGE, SPOKEN

from aqua_client.counters import Figures
from aqua_client.records import (
    OTHER_PROTOCOL,
    CallAnswer,
    DaemonFrame,
    DescriptorArrived,
    HostRoom,
    LeasesEnded,
    LeasesLost,
    LeaseUse,
    Refusal,
    Restarting,
    RevokeNotice,
    Unheard,
    Welcome,
)
from aqua_client.wire import Malformed, parse, room_message

# How a frame begins that holds one of these: by a field with a length.
_OF_CALL = tuple(
    bytes([number << 3 | 2])
    for number in (
        presence_pb2.DaemonFrame.CALL_REPLY_FIELD_NUMBER,
        presence_pb2.DaemonFrame.SLAB_DESCRIPTOR_FIELD_NUMBER,
    )
)


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
        features=CLIENT_FEATURES,
        home_gpu=home_gpu or "",
        sub_tenant=sub_tenant,
        program=program,
        version=version,
        session_id=session_id or "",
        leases=_uses(uses),
        host_room=room_message(room),
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
        host_room=room_message(room),
        figures=None if figures is None else _figures(figures),
    )
    return presence_pb2.ClientFrame(keepalive=keepalive).SerializeToString()


def goodbye_frame(figures: Figures | None = None) -> bytes:
    """The last frame."""
    goodbye = presence_pb2.Goodbye(figures=None if figures is None else _figures(figures))
    return presence_pb2.ClientFrame(goodbye=goodbye).SerializeToString()


def call_frame(number: int, method: str, payload: bytes, seconds: float) -> bytes:
    """A call of the Broker service, whose caller waits so long."""
    call = presence_pb2.Call(number=number, method=method, payload=payload, seconds=seconds)
    return presence_pb2.ClientFrame(call=call).SerializeToString()


def is_of_call(payload: bytes) -> bool:
    """Whether a frame of the daemon begins as an answer does, or a slab that is one's memory."""
    return payload[:1] in _OF_CALL


def parse_daemon_frame(payload: bytes, *, now: float) -> DaemonFrame:
    """What a frame of the daemon says.

    Raises:
        Malformed: it is none, or can't be meant.
    """
    frame = presence_pb2.DaemonFrame()
    parse(frame, payload)
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
        case "call_reply":
            return _answer(frame.call_reply)
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
        takes_calls=CALLS in welcome.features,
        takes_exchanges=LEASE_EXCHANGE in welcome.features,
    )


def _answer(reply: presence_pb2.CallReply) -> CallAnswer:
    if not reply.HasField("refusal"):
        return CallAnswer(number=reply.number, payload=reply.payload)
    refusal = reply.refusal
    largest_bytes = refusal.largest_bytes if refusal.HasField("largest_bytes") else None
    no = Refusal(
        code=refusal.code,
        message=refusal.message,
        reason=refusal.reason,
        largest_bytes=largest_bytes,
    )
    return CallAnswer(number=reply.number, refusal=no)


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


def _figures(figures: Figures) -> presence_pb2.ClientFigures:
    message = presence_pb2.ClientFigures(
        peer_offload_bytes=figures.peer_offload_bytes,
        host_offload_bytes=figures.host_offload_bytes,
        peer_fetch_bytes=figures.peer_fetch_bytes,
        host_fetch_bytes=figures.host_fetch_bytes,
        evacuated_bytes=figures.evacuated_bytes,
        promoted_bytes=figures.promoted_bytes,
        fallbacks=figures.fallbacks,
    )
    for tier, durations in figures.fetch_durations.items():
        message.fetch_durations[tier].counts.extend(durations.counts)
        message.fetch_durations[tier].sum_nanoseconds = durations.sum_nanoseconds
    for gpu, use in figures.fetched_from.items():
        message.fetched_from[gpu].fetches = use.fetches
        message.fetched_from[gpu].nbytes = use.nbytes
        message.fetched_from[gpu].nanoseconds = use.nanoseconds
    return message
