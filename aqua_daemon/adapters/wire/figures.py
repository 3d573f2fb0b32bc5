"""What clients say that they have done: protobuf in, records out, every number checked.

Absolute figures of one process; what is new in them, and of whom, is client_tally's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aqua_protos import presence_pb2

from aqua_daemon.adapters.wire import checks
from aqua_daemon.core.errors import InvalidRequest
from aqua_daemon.core.model import GpuUuid

TIERS = ("peer", "host")  # where bytes can be
FETCH_TIERS = (*TIERS, "mixed")  # what one fetch can have been from
FETCH_BUCKETS_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
MOST_REASONS = 64
MOST_TIERS = 16
MOST_LENDERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchDurations:
    """How many fetches took at most each bucket's seconds (the last: any), and their sum."""

    counts: tuple[int, ...] = (0,) * (len(FETCH_BUCKETS_SECONDS) + 1)
    sum_nanoseconds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFetches:
    """Timed fetches from one GPU."""

    fetches: int = 0
    nbytes: int = 0
    nanoseconds: int = 0


def _nothing(names: tuple[str, ...]) -> dict[str, int]:
    return dict.fromkeys(names, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFigures:
    """Everything since the process began, or what is new of it, or the sum of many."""

    offload_bytes: Mapping[str, int] = field(default_factory=lambda: _nothing(TIERS))
    fetch_bytes: Mapping[str, int] = field(default_factory=lambda: _nothing(TIERS))
    evacuated_bytes: int = 0
    promoted_bytes: int = 0
    fallbacks: Mapping[str, int] = field(default_factory=dict)  # by reason
    fetch_durations: Mapping[str, FetchDurations] = field(
        default_factory=lambda: {tier: FetchDurations() for tier in FETCH_TIERS}
    )
    fetched_from: Mapping[GpuUuid, LinkFetches] = field(default_factory=dict)


def client_figures(message: presence_pb2.ClientFigures) -> ClientFigures:
    """Checked. A tier that a later release knows is left out.

    Raises:
        InvalidRequest: a number that counts nothing, or too much of anything.
    """
    peer_out = checks.counter("peer_offload_bytes", message.peer_offload_bytes)
    host_out = checks.counter("host_offload_bytes", message.host_offload_bytes)
    peer_in = checks.counter("peer_fetch_bytes", message.peer_fetch_bytes)
    host_in = checks.counter("host_fetch_bytes", message.host_fetch_bytes)
    reasons = checks.bounded("fallbacks", message.fallbacks, MOST_REASONS)
    tiers = checks.bounded("fetch_durations", message.fetch_durations, MOST_TIERS)
    lenders = checks.bounded("fetched_from", message.fetched_from, MOST_LENDERS)
    return ClientFigures(
        offload_bytes={"peer": peer_out, "host": host_out},
        fetch_bytes={"peer": peer_in, "host": host_in},
        evacuated_bytes=checks.counter("evacuated_bytes", message.evacuated_bytes),
        promoted_bytes=checks.counter("promoted_bytes", message.promoted_bytes),
        fallbacks={
            checks.name("fallbacks", reason): checks.counter("fallbacks", message.fallbacks[reason])
            for reason in reasons
        },
        fetch_durations={
            tier: _durations(message.fetch_durations[tier]) for tier in tiers if tier in FETCH_TIERS
        },
        fetched_from={
            checks.gpu("fetched_from", lender): _fetches(message.fetched_from[lender])
            for lender in lenders
        },
    )


def _fetches(message: presence_pb2.LinkUse) -> LinkFetches:
    return LinkFetches(
        fetches=checks.counter("fetches", message.fetches),
        nbytes=checks.counter("nbytes", message.nbytes),
        nanoseconds=checks.counter("nanoseconds", message.nanoseconds),
    )


def _durations(message: presence_pb2.FetchDurations) -> FetchDurations:
    expected = len(FETCH_BUCKETS_SECONDS) + 1
    if len(message.counts) != expected:
        msg = f"fetch_durations has {len(message.counts)} counts: send {expected}, one a bucket"
        raise InvalidRequest(msg)
    return FetchDurations(
        counts=tuple(checks.counter("counts", count) for count in message.counts),
        sum_nanoseconds=checks.counter("sum_nanoseconds", message.sum_nanoseconds),
    )
