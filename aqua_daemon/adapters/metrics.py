"""What Prometheus sees: one snapshot and the tally's counts, read from the event loop at a scrape.

Covers names, labels, the collector, and the HTTP server's thread. Does not cover what is counted
(tally.py) or the books (core). Labels are GPUs, tenants and closed lists; never a pid, a lease or
a tensor. Every label set that can be known beforehand is there from the start, as 0.

A loop that does not answer within a second is itself news: the scrape then shows the last reading
and says so in `aqua_scrape_stale`, instead of hanging as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from aqua_daemon import __version__
from aqua_daemon.adapters.tally import Counts, Durations, cumulative
from aqua_daemon.adapters.wire.figures import FETCH_BUCKETS_SECONDS, TIERS, ClientFigures
from aqua_daemon.core.model import LeaseState
from aqua_daemon.core.node_snapshot import GpuSnapshot, LinkSnapshot, NodeSnapshot

ANSWER_SECONDS = 1.0
_CLIENTS = "as clients say, a third of a term late"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One moment of the node, for one scrape."""

    snapshot: NodeSnapshot
    counts: Counts
    faults: int
    clients: ClientFigures = field(default_factory=ClientFigures)


def on_loop(
    loop: asyncio.AbstractEventLoop, read: Callable[[], Reading]
) -> Callable[[], Reading | None]:
    """*read*, called on the loop's thread from another; None when the loop does not answer."""

    def ask() -> Reading | None:
        answer: Future[Reading] = Future()

        def fill() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(read())
                except Exception as error:  # noqa: BLE001 - told to the asking thread
                    answer.set_exception(error)

        try:
            loop.call_soon_threadsafe(fill)
        except RuntimeError:  # the loop is closed: the daemon is about to end
            return None
        try:
            return answer.result(timeout=ANSWER_SECONDS)
        except TimeoutError:
            answer.cancel()
            return None

    return ask


class NodeCollector(Collector):
    """Turns readings into metrics."""

    def __init__(self, ask: Callable[[], Reading | None]) -> None:
        self._ask = ask
        self._last: Reading | None = None

    def collect(self) -> Iterable[Metric]:
        """All metrics of the node at this moment, or of the last one that could be read."""
        fresh = self._ask()
        self._last = fresh or self._last
        stale = _gauge("scrape_stale", "1 when the event loop did not answer: all else is old.")
        stale.add_metric([], 0 if fresh else 1)
        build = _gauge("build_info", "1, labelled with what runs.", "version", "python")
        build.add_metric([__version__, platform.python_version()], 1)
        yield from (stale, build)
        if self._last is not None:
            yield from _gpu_metrics(self._last.snapshot.gpus)
            yield from _failure_metrics(self._last)
            yield from _state_metrics(self._last.snapshot)
            yield from _link_metrics(self._last.snapshot.links)
            yield from _lease_counters(self._last.counts)
            yield from _client_counters(self._last.clients)
            yield from _fault_counters(self._last)


class MetricsServer:
    """Serves a registry over HTTP from a thread of its own."""

    def __init__(self, collector: Collector, *, host: str, port: int) -> None:
        """Listen at once.

        Raises:
            OSError: the address is in use or not this machine's.
        """
        registry = CollectorRegistry()
        registry.register(collector)
        kind = _Ipv6Server if ":" in host else ThreadingWSGIServer
        answer = make_wsgi_app(registry)
        self._server = make_server(host, port, answer, kind, handler_class=_SilentHandler)
        self._is_closing = False
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Stop serving. May be called twice."""
        self._is_closing = True
        with contextlib.suppress(OSError):  # closed before
            self._server.socket.shutdown(socket.SHUT_RDWR)  # wakes who waits for a connection
        self._thread.join()
        self._server.server_close()

    def _serve(self) -> None:
        # Its own `serve_forever` looks several times a second whether it is to end.
        while not self._is_closing:
            self._server.handle_request()


class _Ipv6Server(ThreadingWSGIServer):
    address_family = socket.AF_INET6


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name there
        """Say nothing: a scrape each few seconds is no news."""


def _gpu_metrics(gpus: Iterable[GpuSnapshot]) -> Iterator[Metric]:
    pool = _gauge(
        "pool_bytes",
        "Memory of a GPU by what it is; sums to its capacity; without its keeper most is unknown.",
        "gpu",
        "state",
    )
    quarantined = _gauge("quarantined_bytes", "Lent memory that did not come back.", "gpu")
    lendable = _gauge("lendable_bytes", "What may be granted now; 0 without its keeper.", "gpu")
    drained = _gauge("gpu_drained", "1 while an admin wants nothing lent there.", "gpu")
    for gpu in gpus:
        drained.add_metric([gpu.gpu], gpu.is_drained)
        parts = {
            "used_by_others": gpu.used_by_others_bytes,
            "lent": gpu.lent_bytes,
            "quarantined": gpu.quarantined_bytes,
            "returning": gpu.returning_bytes,
            "free": gpu.free_bytes,
            "unknown": gpu.unknown_bytes,
        }
        for state, nbytes in parts.items():
            pool.add_metric([gpu.gpu, state], nbytes)
        quarantined.add_metric([gpu.gpu], gpu.quarantined_bytes)
        lendable.add_metric([gpu.gpu], gpu.lendable_bytes)
    yield from (pool, quarantined, lendable, drained)


def _failure_metrics(reading: Reading) -> Iterator[Metric]:
    trouble = _gauge("gpu_trouble", "1 while something is wrong, and so nothing is lent.", "gpu")
    ends = _counter("keeper_ends", "Keepers that have ended, with all that they held.", "gpu")
    lost = _counter("leases_lost", "Leases whose bytes went with a keeper.", "gpu")
    for gpu in reading.snapshot.gpus:
        trouble.add_metric([gpu.gpu], bool(gpu.trouble))
        ends.add_metric([gpu.gpu], reading.counts.keeper_ends[gpu.gpu])
        lost.add_metric([gpu.gpu], reading.counts.leases_lost[gpu.gpu])
    yield from (trouble, ends, lost)


def _state_metrics(snapshot: NodeSnapshot) -> Iterator[Metric]:
    in_state = Counter(lease.state for lease in snapshot.leases)
    leases = _gauge("leases", "Leases by where their slab is in its life.", "state")
    for state in LeaseState:
        leases.add_metric([state.value], in_state[state])
    sessions = _gauge("sessions", "Client processes that are linked or still hold leases.")
    sessions.add_metric([], len(snapshot.sessions))
    tenants = _gauge("tenant_leased_bytes", "Slabs that count against a tenant's quota.", "tenant")
    for tenant in snapshot.tenants:
        tenants.add_metric([tenant.tenant], tenant.leased_bytes)
    reserved = _gauge("host_reserved_bytes", "Host memory reserved for data of class store.")
    reserved.add_metric([], snapshot.host_reserved_bytes)
    pool = _gauge("host_pool_bytes", "Host memory that may be reserved for data of class store.")
    pool.add_metric([], snapshot.host_pool_bytes)
    yield from (leases, sessions, tenants, reserved, pool)


def _link_metrics(links: Iterable[LinkSnapshot]) -> Iterator[Metric]:
    ends = ("from", "to")
    speed = _gauge("link_bandwidth_bytes_per_second", "What a link was measured to carry.", *ends)
    latency = _gauge("link_latency_seconds", "What a copy over it takes before a byte.", *ends)
    slow = _gauge("link_slow", "1 where it is so slow that others lend first.", *ends)
    for link in links:
        labels = [link.pair.source, link.pair.target]
        speed.add_metric(labels, link.rate.bytes_per_second)
        latency.add_metric(labels, link.rate.latency_seconds)
        slow.add_metric(labels, bool(link.slow))
    yield from (speed, latency, slow)


def _lease_counters(counts: Counts) -> Iterator[Metric]:
    grants = _counter("lease_grants", "Requests for a lease by how they ended.", "result")
    grants.add_metric(["granted"], counts.granted)
    grants.add_metric(["denied"], counts.denied)
    denials = _counter("lease_denials", "Denied requests for a lease by why.", "reason")
    for reason, count in counts.denials.items():
        denials.add_metric([reason], count)
    revokes = _counter("revokes", "Revoked leases by why and how it ended.", "reason", "outcome")
    for (why, how), count in counts.revokes.items():
        revokes.add_metric([why.value, how.value], count)
    yield from (grants, denials, revokes)
    revoking = "How long leases were being revoked."
    reclaiming = "How long producers waited for their memory."
    yield _histogram("revoke_duration_seconds", revoking, counts.revoke_durations)
    yield _histogram("reclaim_duration_seconds", reclaiming, counts.reclaim_durations)
    moves = _counter("rebalance_moves", "Times that memory was moved by choice.", "direction")
    moves.add_metric(["to_fair_share"], counts.rebalance_moves)
    blocked = _counter("rebalance_blocked", "Times that it was not, by why.", "reason")
    for block, count in counts.rebalance_blocks.items():
        blocked.add_metric([block.value], count)
    yield from (moves, blocked)
    scrubbed = _counter("scrubbed_bytes", "Bytes overwritten before they were freed.")
    scrubbed.add_metric([], counts.scrubbed_bytes)
    yield scrubbed


def _client_counters(figures: ClientFigures) -> Iterator[Metric]:
    parked = _counter("offload_bytes", f"Bytes that clients parked, {_CLIENTS}.", "tier")
    fetched = _counter("fetch_bytes", f"Bytes that clients fetched, {_CLIENTS}.", "tier")
    for tier in TIERS:
        parked.add_metric([tier], figures.offload_bytes[tier])
        fetched.add_metric([tier], figures.fetch_bytes[tier])
    what = f"How long fetches of at least 1 MiB took their callers, {_CLIENTS}."
    took = HistogramMetricFamily("aqua_fetch_duration_seconds", what, labels=("tier",))
    for tier, durations in figures.fetch_durations.items():
        buckets = list(cumulative(durations.counts, FETCH_BUCKETS_SECONDS).items())
        took.add_metric([tier], buckets, sum_value=durations.sum_nanoseconds / 1e9)
    fallbacks = _counter("fallback", f"Offloads that went to host memory, {_CLIENTS}.", "reason")
    for reason, count in figures.fallbacks.items():
        fallbacks.add_metric([reason], count)
    evacuated = _counter("evacuated_bytes", f"Bytes moved out of revoked leases, {_CLIENTS}.")
    evacuated.add_metric([], figures.evacuated_bytes)
    promoted = _counter("promoted_bytes", f"Bytes moved from host memory to leases, {_CLIENTS}.")
    promoted.add_metric([], figures.promoted_bytes)
    yield from (parked, fetched, took, fallbacks, evacuated, promoted)


def _fault_counters(reading: Reading) -> Iterator[Metric]:
    violations = _counter("invariant_violations", "Times that the books were found wrong.")
    violations.add_metric([], reading.snapshot.invariant_violations)
    faults = _counter("faults", "Errors inside the daemon that it caught and went on from.")
    faults.add_metric([], reading.faults)
    yield from (violations, faults)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"aqua_{name}", text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"aqua_{name}", text, labels=labels)


def _histogram(name: str, text: str, durations: Durations) -> HistogramMetricFamily:
    buckets = list(cumulative(durations.counts).items())
    return HistogramMetricFamily(
        f"aqua_{name}", text, buckets=buckets, sum_value=durations.sum_seconds
    )
