"""What aquactl says to machines: JSON with a schema number that changes when a field's meaning does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aqua_protos import broker_pb2

from aqua_daemon.ctl.screens import class_name, state_name
from aqua_daemon.ctl.verdict import Verdict, findings

SCHEMA = 1
Document = dict[str, object]


def status_document(state: broker_pb2.GetStateReply) -> Document:
    """Everything that the status screen shows, in bytes and seconds."""
    judged = findings(state)
    return {
        "schema": SCHEMA,
        "version": state.version,
        "uptime_seconds": state.uptime_seconds,
        "restarting": state.restarting,
        "sessions": state.sessions,
        "clients": [{"version": one.version, "sessions": one.sessions} for one in state.clients],
        "host_pool_bytes": state.host_pool_bytes,
        "host_reserved_bytes": state.host_reserved_bytes,
        "invariant_violations": state.invariant_violations,
        "verdict": _judgement(judged[0]),
        "findings": [_judgement(one) for one in judged],
        "gpus": [_fields(gpu) for gpu in state.gpus],
        "tenants": [_fields(tenant) for tenant in state.tenants],
        "links": [_link(link) for link in state.links],
        "events": [_fields(event) for event in state.events],
    }


def leases_document(leases: Iterable[broker_pb2.Lease]) -> Document:
    """The leases, each whole."""
    return {"schema": SCHEMA, "leases": [_lease(lease) for lease in leases]}


def event_document(event: broker_pb2.EventLine, *, now: float) -> Document:
    """One event, with the wall clock's time of it in seconds since 1970."""
    return {"schema": SCHEMA, "time": round(now - event.seconds_ago, 3), **_fields(event)}


def _judgement(one: Verdict) -> Document:
    return {"level": one.level, "sentence": one.sentence, "next_command": one.next_command}


def _link(state: broker_pb2.LinkState) -> Document:
    return {
        "source": state.link.source,
        "target": state.link.target,
        "bytes_per_second": state.bytes_per_second,
        "latency_seconds": state.latency_seconds,
        "slow": state.slow,
    }


def _lease(lease: broker_pb2.Lease) -> Document:
    return _fields(lease) | {
        "state": state_name(lease.state),
        "safety_class": class_name(lease.safety_class),
    }


def _fields(
    message: broker_pb2.GpuState | broker_pb2.TenantState | broker_pb2.EventLine | broker_pb2.Lease,
) -> Document:
    """Every field under its own name, those at their default too."""
    return {
        field.name: list(value)
        if isinstance(value, Sequence) and not isinstance(value, str)
        else value
        for field in message.DESCRIPTOR.fields
        for value in (getattr(message, field.name),)
    }
