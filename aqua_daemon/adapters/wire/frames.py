"""The presence socket's frames: a client's bytes in, records out; orders of the core in, bytes out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from aqua_protos import presence_pb2
from aqua_protos.agreement import DAEMON_FEATURES, OBSERVER, Protocols

from aqua_daemon.adapters.wire import checks
from aqua_daemon.adapters.wire.figures import ClientFigures, client_figures
from aqua_daemon.adapters.wire.requests import host_room, parsed
from aqua_daemon.core.errors import InvalidRequest
from aqua_daemon.core.instructions import AnswerKeepalive, SendRevoke, TellLost
from aqua_daemon.core.model import GpuUuid, HostRoom, LeaseId, LeaseUse, SessionId, TenantName

MOST_FEATURES = 64
_CALL_BEGINS = bytes([presence_pb2.ClientFrame.CALL_FIELD_NUMBER << 3 | 2])  # a field with a length
_FEATURE = re.compile(r"[a-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A process presents itself."""

    protocols: Protocols  # that the client speaks
    home_gpu: GpuUuid | None
    sub_tenant: str
    program: str
    version: str
    session_id: SessionId | None  # of a process that re-attaches
    uses: tuple[LeaseUse, ...]
    host_room: HostRoom
    figures: ClientFigures | None = None  # what a daemon has heard before
    is_observer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepalive:
    """A session's sign of life."""

    sequence: int
    uses: tuple[LeaseUse, ...]
    host_room: HostRoom
    figures: ClientFigures | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye:
    """A process leaves, having unmapped everything."""

    figures: ClientFigures | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of the API."""

    number: int
    method: str
    payload: bytes
    seconds: float  # that its caller waits


ClientFrame = Hello | Keepalive | Goodbye | Call


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What a Welcome says."""

    protocol: int
    session_id: SessionId
    token: bytes
    tenant: TenantName
    term_seconds: float
    smallest_slab_bytes: int
    largest_slab_bytes: int
    daemon_version: str
    ended: tuple[LeaseId, ...]
    unheard: tuple[LeaseId, ...]
    has_sentinel: bool


def client_frame(payload: bytes) -> ClientFrame:
    """What a client's frame says, checked."""
    message = parsed(presence_pb2.ClientFrame, payload)
    kind = message.WhichOneof("kind")
    if (kind == "call") is not is_call(payload):
        raise InvalidRequest("the frame holds two things: send them in a frame each")
    match kind:
        case "hello":
            return _hello(message.hello)
        case "keepalive":
            return Keepalive(
                sequence=checks.counter("sequence", message.keepalive.sequence),
                uses=_uses(message.keepalive.leases),
                host_room=host_room(message.keepalive.host_room),
                figures=_figures(message.keepalive),
            )
        case "goodbye":
            return Goodbye(figures=_figures(message.goodbye))
        case "call":
            return _call(message.call)
        case None:
            msg = "the frame holds nothing known: send one of hello, keepalive, goodbye, call"
            raise InvalidRequest(msg)
        case _:
            assert_never(kind)


def is_call(payload: bytes) -> bool:
    """Whether a frame begins as a call does: what it may cost is asked before it is read."""
    return payload[:1] == _CALL_BEGINS


def welcome(greeting: Greeting) -> bytes:
    """Welcome."""
    message = presence_pb2.Welcome(
        protocol=greeting.protocol,
        features=DAEMON_FEATURES,
        session_id=greeting.session_id,
        token=greeting.token,
        tenant=greeting.tenant,
        term_seconds=greeting.term_seconds,
        smallest_slab_bytes=greeting.smallest_slab_bytes,
        largest_slab_bytes=greeting.largest_slab_bytes,
        daemon_version=greeting.daemon_version,
        ended_lease_ids=greeting.ended,
        unheard_lease_ids=greeting.unheard,
        has_sentinel=greeting.has_sentinel,
    )
    return presence_pb2.DaemonFrame(welcome=message).SerializeToString()


def refusal(code: str, message: str, *, reason: str) -> bytes:
    """Refusal."""
    refused = presence_pb2.Refusal(code=code, message=message, reason=reason)
    return presence_pb2.DaemonFrame(refusal=refused).SerializeToString()


def keepalive_reply(sequence: int, answer: AnswerKeepalive) -> bytes:
    """KeepaliveReply."""
    message = presence_pb2.KeepaliveReply(
        sequence=sequence, ended_lease_ids=answer.ended, unheard_lease_ids=answer.unheard
    )
    return presence_pb2.DaemonFrame(keepalive_reply=message).SerializeToString()


def call_reply(number: int, payload: bytes) -> bytes:
    """CallReply."""
    message = presence_pb2.CallReply(number=number, payload=payload)
    return presence_pb2.DaemonFrame(call_reply=message).SerializeToString()


def call_refused(
    number: int, code: str, message: str, *, reason: str, largest_bytes: int | None = None
) -> bytes:
    """CallReply that says no; for a slab, how large a one may be had, where that is known."""
    refused = presence_pb2.Refusal(
        code=code, message=message, reason=reason, largest_bytes=largest_bytes
    )
    reply = presence_pb2.CallReply(number=number, refusal=refused)
    return presence_pb2.DaemonFrame(call_reply=reply).SerializeToString()


def revoke(order: SendRevoke, *, seconds: float) -> bytes:
    """Revoke."""
    message = presence_pb2.Revoke(
        lender_gpu=order.gpu,
        nbytes=order.nbytes,
        reason=order.reason.value,
        deadline_seconds=seconds,
        lease_ids=order.lease_ids,
    )
    return presence_pb2.DaemonFrame(revoke=message).SerializeToString()


def slab_descriptor(lease_id: LeaseId) -> bytes:
    """SlabDescriptor."""
    message = presence_pb2.SlabDescriptor(lease_id=lease_id)
    return presence_pb2.DaemonFrame(slab_descriptor=message).SerializeToString()


def leases_lost(order: TellLost) -> bytes:
    """LeasesLost."""
    message = presence_pb2.LeasesLost(lease_ids=order.lease_ids, reason=order.reason)
    return presence_pb2.DaemonFrame(leases_lost=message).SerializeToString()


def restarting() -> bytes:
    """Restarting."""
    message = presence_pb2.Restarting()
    return presence_pb2.DaemonFrame(restarting=message).SerializeToString()


def _hello(message: presence_pb2.Hello) -> Hello:
    for feature in checks.bounded("features", message.features, MOST_FEATURES):
        if _FEATURE.fullmatch(feature) is None:
            msg = f"feature {checks.shown(feature)} is no name: 1 to 64 of a-z, 0-9 and ._-"
            raise InvalidRequest(msg)
    return Hello(
        protocols=Protocols.said(message.protocol, message.newest_protocol),
        home_gpu=checks.gpu("home_gpu", message.home_gpu) if message.home_gpu else None,
        sub_tenant=checks.name("sub_tenant", message.sub_tenant),
        program=checks.name("program", message.program),
        version=checks.name("version", message.version),
        session_id=checks.session_id(message.session_id) if message.session_id else None,
        uses=_uses(message.leases),
        host_room=host_room(message.host_room),
        figures=_figures(message),
        is_observer=OBSERVER in message.features,
    )


def _call(message: presence_pb2.Call) -> Call:
    return Call(
        number=checks.counter("number", message.number),
        method=checks.name("method", message.method),
        payload=message.payload,
        seconds=checks.seconds("seconds", message.seconds, most=checks.LONGEST_SECONDS),
    )


def _figures(
    message: presence_pb2.Hello | presence_pb2.Keepalive | presence_pb2.Goodbye,
) -> ClientFigures | None:
    return client_figures(message.figures) if message.HasField("figures") else None


def _uses(messages: Sequence[presence_pb2.LeaseUse]) -> tuple[LeaseUse, ...]:
    if len(messages) > checks.MOST_LEASES:
        msg = f"leases has {len(messages)} entries: name at most {checks.MOST_LEASES}"
        raise InvalidRequest(msg)
    uses = tuple(
        LeaseUse(
            lease_id=checks.lease_id(use.lease_id),
            used_bytes=checks.nbytes("used_bytes", use.used_bytes),
            copy_bytes=checks.nbytes("copy_bytes", use.copy_bytes),
            idle_seconds=checks.seconds(
                "idle_seconds", use.idle_seconds, most=checks.LONGEST_SECONDS
            ),
        )
        for use in messages
    )
    checks.no_repeats("leases", tuple(use.lease_id for use in uses))
    return uses
