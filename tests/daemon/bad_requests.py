"""Bad calls of the API, each with the status and the words that must come of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from aqua_protos import broker_pb2
from google.protobuf.message import Message

from aqua_daemon.adapters.broker_calls import LARGEST_REQUEST_BYTES
from tests.daemon.in_process import MIB

ID = "0a" * 16
CACHE = broker_pb2.SAFETY_CLASS_CACHE
HUGE = 2**63 - 1
TRUNCATED = b"\x0a\x20abc"  # field 1 says 32 bytes and has 3
NOT_UTF8 = b"\x0a\x01\xff"
NO_GPUS: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, "name gpus, or give all_gpus"),
    ({"gpus": ["SHM-1"], "all_gpus": True}, "and not both"),
    ({"gpus": ["SHM-1; rm"]}, "names no GPU"),
    ({"gpus": ["SHM-9"]}, "not on this node"),
    ({"gpus": ["SHM-1"] * 1025}, "name at most 1024"),
)
METHODS = (
    "Acquire",
    "Release",
    "Acknowledge",
    "Exchange",
    "ReserveHost",
    "Offer",
    "Reclaim",
    "SetQuota",
    "Quiesce",
    "Drain",
    "Undrain",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BadCall:
    """A call, and what must come of it."""

    name: str
    payload: bytes | Message
    status: str = "INVALID_ARGUMENT"
    says: str  # a part of the message

    @property
    def label(self) -> str:
        return f"{self.name}: {self.says}"


def acquire(**fields: object) -> broker_pb2.AcquireRequest:
    good = {"request_id": ID, "nbytes": 4 * MIB, "safety_class": CACHE}
    return broker_pb2.AcquireRequest(**{**good, **fields})  # type: ignore[arg-type]  # a bad one


def returning(*lease_ids: str, request_id: str = ID, **room: int) -> broker_pb2.ReturnRequest:
    request = broker_pb2.ReturnRequest(request_id=request_id, lease_ids=lease_ids)
    if room:
        request.host_room.CopyFrom(broker_pb2.HostRoom(**room))
    return request


def reserving(revision: int, nbytes: int, *, request_id: str = ID) -> broker_pb2.ReserveHostRequest:
    room = broker_pb2.HostRoom(revision=revision, nbytes=nbytes)
    return broker_pb2.ReserveHostRequest(request_id=request_id, host_room=room)


def reclaiming(**fields: object) -> broker_pb2.ReclaimRequest:
    good = {"request_id": ID, "gpu": "SHM-1", "nbytes": MIB}
    return broker_pb2.ReclaimRequest(**{**good, **fields})  # type: ignore[arg-type]  # a bad one


def offering(**fields: object) -> broker_pb2.OfferRequest:
    good = {"request_id": ID, "gpu": "SHM-1", "nbytes": MIB}
    return broker_pb2.OfferRequest(**{**good, **fields})  # type: ignore[arg-type]  # a bad one


def setting(**fields: object) -> broker_pb2.SetQuotaRequest:
    good = {"request_id": ID, "tenant": "uid-7", "nbytes": MIB}
    return broker_pb2.SetQuotaRequest(**{**good, **fields})  # type: ignore[arg-type]  # a bad one


BAD_CALLS = [
    # Empty, truncated, not text, over the limit: for each method.
    BadCall(name="Acquire", payload=b"", says="say SAFETY_CLASS_STORE"),
    BadCall(name="Release", payload=b"", says="name the leases"),
    BadCall(name="Acknowledge", payload=b"", says="name the leases"),
    BadCall(name="ReserveHost", payload=b"", says="host_room is missing"),
    BadCall(name="Offer", payload=b"", says="request_id '' is no id"),
    BadCall(name="Reclaim", payload=b"", says="request_id '' is no id"),
    BadCall(name="Quiesce", payload=b"", says="request_id '' is no id"),
    BadCall(name="SetQuota", payload=b"", says="the quota is missing"),
    *(BadCall(name=name, payload=TRUNCATED, says="send a whole message") for name in METHODS),
    *(BadCall(name=name, payload=NOT_UTF8, says="do not parse as") for name in METHODS),
    BadCall(name="GetState", payload=TRUNCATED, says="send a whole message"),
    BadCall(name="GetState", payload=broker_pb2.GetStateRequest(gpu="SHM 1"), says="names no GPU"),
    BadCall(name="GetEvents", payload=TRUNCATED, says="send a whole message"),
    BadCall(name="GetEvents", payload=broker_pb2.GetEventsRequest(after=-1), says="after is -1"),
    BadCall(
        name="GetEvents", payload=broker_pb2.GetEventsRequest(epoch="x" * 129), says="epoch 'xxx"
    ),
    *(
        BadCall(
            name=name,
            payload=bytes(LARGEST_REQUEST_BYTES + 1),
            status="RESOURCE_EXHAUSTED",
            says="name fewer leases",
        )
        for name in (*METHODS, "GetState")
    ),
    *(
        BadCall(
            name=name,
            payload=bytes(4 * LARGEST_REQUEST_BYTES + 1),
            status="RESOURCE_EXHAUSTED",
            says="larger than max",
        )
        for name in (*METHODS, "GetState")
    ),
    BadCall(name="Nothing", payload=b"", status="UNIMPLEMENTED", says=""),
    # Ids.
    BadCall(name="Acquire", payload=acquire(request_id=""), says="32 lower-case hexadecimal"),
    BadCall(name="Acquire", payload=acquire(request_id="A" * 32), says="request_id 'AAA"),
    BadCall(name="Acquire", payload=acquire(request_id="\n" * 32), says="32 lower-case"),
    BadCall(name="Acquire", payload=acquire(request_id="0" * 5000), says="request_id '000"),
    BadCall(name="Release", payload=returning("x"), says="lease id 'x' is no id"),
    BadCall(name="Release", payload=returning(""), says="lease id '' is no id"),
    BadCall(name="Release", payload=returning(ID, ID), says="names a lease twice"),
    BadCall(name="Acknowledge", payload=returning(*[ID] * 10_001), says="at most 10000"),
    # Sizes.
    *(
        BadCall(name="Acquire", payload=acquire(nbytes=nbytes), says=f"nbytes is {nbytes}: ask")
        for nbytes in (0, -1, 1, 4 * MIB + 1, 2 * MIB, 64 * MIB, HUGE, -HUGE - 1)
    ),
    *(
        BadCall(name="Offer", payload=offering(nbytes=nbytes), says=f"nbytes is {nbytes}: it must")
        for nbytes in (-1, HUGE)
    ),
    *(
        BadCall(name="Reclaim", payload=reclaiming(nbytes=n), says=f"nbytes is {n}: it must")
        for n in (0, -1, HUGE)
    ),
    *(
        BadCall(name="ReserveHost", payload=reserving(1, nbytes), says=f"nbytes is {nbytes}")
        for nbytes in (-1, HUGE)
    ),
    *(
        BadCall(name="ReserveHost", payload=reserving(n, 0), says=f"revision is {n}")
        for n in (-1, HUGE)
    ),
    BadCall(
        name="ReserveHost",
        payload=reserving(1, 2**40),
        status="RESOURCE_EXHAUSTED",
        says="Release `store` data",
    ),
    BadCall(name="Release", payload=returning(ID, nbytes=-1), says="host_room.nbytes is -1"),
    BadCall(name="Acknowledge", payload=returning(ID, revision=-1), says="revision is -1"),
    # Quiet.
    *(
        BadCall(
            name="Quiesce",
            payload=broker_pb2.QuiesceRequest(request_id=ID, gpu="SHM-1", seconds=seconds),
            says=f"seconds is {seconds}: it must be a finite",
        )
        for seconds in (math.nan, math.inf, -1.0, 601.0)
    ),
    BadCall(
        name="Quiesce",
        payload=broker_pb2.QuiesceRequest(request_id=ID, gpu="SHM-9"),
        says="not on this node",
    ),
    # Drains.
    *(
        BadCall(
            name="Drain",
            payload=broker_pb2.DrainRequest(request_id=ID, all_gpus=True, deadline_seconds=seconds),
            says=f"deadline_seconds is {seconds}: it must be a finite",
        )
        for seconds in (math.nan, math.inf, -1.0, 61.0)
    ),
    *(
        BadCall(name="Drain", payload=broker_pb2.DrainRequest(request_id=ID, **said), says=says)
        for said, says in NO_GPUS
    ),
    *(
        BadCall(name="Undrain", payload=broker_pb2.UndrainRequest(request_id=ID, **said), says=says)
        for said, says in NO_GPUS
    ),
    # Quotas.
    BadCall(name="GetQuotas", payload=TRUNCATED, says="send a whole message"),
    BadCall(
        name="SetQuota",
        payload=broker_pb2.SetQuotaRequest(request_id=ID, tenant="uid-7"),
        says="the quota is missing",
    ),
    BadCall(
        name="SetQuota",
        payload=broker_pb2.SetQuotaRequest(request_id=ID, tenant="uid-7", use_default=False),
        says="the quota is missing",
    ),
    *(
        BadCall(name="SetQuota", payload=setting(nbytes=nbytes), says=f"nbytes is {nbytes}: it")
        for nbytes in (-1, HUGE)
    ),
    *(
        BadCall(
            name="SetQuota",
            payload=broker_pb2.SetQuotaRequest(request_id=ID, tenant="uid-7", **{name: False}),
            says="the quota is missing",
        )
        for name in ("default_leases", "default_sessions", "default_weight", "default_priority")
    ),
    *(
        BadCall(name="SetQuota", payload=setting(weight=n), says=f"weight is {n}: it must be from")
        for n in (math.nan, math.inf, 0.0, -1.0, 101.0)
    ),
    *(
        BadCall(name="SetQuota", payload=setting(priority=n), says=f"priority is {n}: it must")
        for n in (-1001, 1001, HUGE)
    ),
    *(
        BadCall(name="SetQuota", payload=setting(**{name: n}), says=f"{name} is {n}: it must")
        for name in ("leases", "sessions")
        for n in (-1, 1_000_001, HUGE)
    ),
    *(
        BadCall(name="SetQuota", payload=setting(revision=n), says=f"revision is {n}: it must")
        for n in (-1, HUGE)
    ),
    *(
        BadCall(name="SetQuota", payload=setting(tenant=name), says="names none")
        for name in (
            "",
            "bob",
            "uid-",
            "uid-7/",
            "uid-7+",
            "uid-7\n",
            "uid-7/a b",
            "uid-7/a/b",
            "uid-7+UP",
            "uid-7/a+b+c",
            "uid-7/" + "x" * 256,
            "uid-12345678901",
        )
    ),
    # Enums.
    BadCall(name="Acquire", payload=acquire(safety_class=0), says="safety_class is 0"),
    BadCall(name="Acquire", payload=acquire(wanted_bytes=-1), says="wanted_bytes is -1"),
    BadCall(name="Acquire", payload=acquire(safety_class=7), says="safety_class is 7"),
    BadCall(name="Acquire", payload=acquire(safety_class=-1), says="safety_class is -1"),
    # GPUs.
    BadCall(name="Offer", payload=offering(gpu=""), says="aquactl status"),
    BadCall(name="Offer", payload=offering(gpu="x" * 1000), says="names no GPU"),
    BadCall(name="Reclaim", payload=reclaiming(gpu="GPU 0; rm"), says="names no GPU"),
    # Deadlines.
    *(
        BadCall(
            name="Reclaim",
            payload=reclaiming(deadline_seconds=seconds),
            says=f"deadline_seconds is {seconds}: it must be a finite",
        )
        for seconds in (math.nan, math.inf, -math.inf, -1.0, 1e300)
    ),
    # Who may not.
    BadCall(name="Offer", payload=offering(), status="PERMISSION_DENIED", says="SHM-1"),
    BadCall(name="Reclaim", payload=reclaiming(), status="PERMISSION_DENIED", says="SHM-1"),
]
