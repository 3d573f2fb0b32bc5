"""What a scrape shows: the snapshot, the counts, and whether they are of now."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from aqua_daemon import __version__
from aqua_daemon.adapters import metrics
from aqua_daemon.adapters.client_tally import ClientTally
from aqua_daemon.adapters.metrics import MetricsServer, NodeCollector, Reading, on_loop
from aqua_daemon.adapters.tally import RevokeOutcome, Tally
from aqua_daemon.adapters.wire.figures import ClientFigures, FetchDurations
from aqua_daemon.core.errors import QuotaExceeded
from aqua_daemon.core.events import KeeperEnded
from aqua_daemon.core.model import LeaseState, RevokeReason
from tests.conftest import require_tool
from tests.daemon.samples import (
    GPU,
    LEASE,
    MIB,
    PAIR,
    REQUESTED,
    SESSION_ID,
    SNAPSHOT,
    TENANT,
    move,
)

# What operators build dashboards and alerts on: a change here is a change for them.
NAMES = {
    "aqua_build_info",
    "aqua_evacuated_bytes",
    "aqua_promoted_bytes",
    "aqua_fallback",
    "aqua_faults",
    "aqua_fetch_bytes",
    "aqua_fetch_duration_seconds",
    "aqua_gpu_drained",
    "aqua_gpu_trouble",
    "aqua_host_pool_bytes",
    "aqua_host_reserved_bytes",
    "aqua_invariant_violations",
    "aqua_keeper_ends",
    "aqua_lease_denials",
    "aqua_lease_grants",
    "aqua_leases",
    "aqua_leases_lost",
    "aqua_lendable_bytes",
    "aqua_link_bandwidth_bytes_per_second",
    "aqua_link_latency_seconds",
    "aqua_link_slow",
    "aqua_offload_bytes",
    "aqua_pool_bytes",
    "aqua_quarantined_bytes",
    "aqua_reclaim_duration_seconds",
    "aqua_revoke_duration_seconds",
    "aqua_revokes",
    "aqua_scrape_stale",
    "aqua_rebalance_moves",
    "aqua_rebalance_blocked",
    "aqua_scrubbed_bytes",
    "aqua_sessions",
    "aqua_tenant_leased_bytes",
}


def reading(tally: Tally | None = None) -> Reading:
    counts, clients = (tally or Tally()).counts(), ClientTally().totals()
    return Reading(snapshot=SNAPSHOT, counts=counts, faults=0, clients=clients)


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def values(text: str, name: str) -> dict[tuple[str, ...], float]:
    """One metric's samples by their labels' values, the labels in the order of their names."""
    samples = families(text)[name].samples
    return {tuple(sample.labels.values()): sample.value for sample in samples}


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310 - loopback
        return str(reply.read().decode())


@contextmanager
def served(ask: Callable[[], Reading | None]) -> Iterator[str]:
    with closing(MetricsServer(NodeCollector(ask), host="127.0.0.1", port=0)) as server:
        yield server.url


def test_the_metrics_are_those_that_are_promised() -> None:
    """No name is missing, none is added unseen, and each has its help."""
    with served(reading) as url:
        found = families(scrape(url))
    assert set(found) == NAMES
    assert [name for name, family in found.items() if not family.documentation] == []


def test_the_metrics_equal_the_state() -> None:
    """Each gauge says what the snapshot says; a GPU's parts sum to its capacity."""
    with served(reading) as url:
        text = scrape(url)
    pool = values(text, "aqua_pool_bytes")
    assert pool == {
        (GPU, "used_by_others"): 10 * MIB,
        (GPU, "lent"): 4 * MIB,
        (GPU, "quarantined"): 8 * MIB,
        (GPU, "returning"): 2 * MIB,
        (GPU, "free"): 40 * MIB,
        (GPU, "unknown"): 0,
    }
    assert sum(pool.values()) == SNAPSHOT.gpus[0].total_bytes
    assert values(text, "aqua_quarantined_bytes") == {(GPU,): 8 * MIB}
    assert values(text, "aqua_lendable_bytes") == {(GPU,): 30 * MIB}
    assert values(text, "aqua_gpu_drained") == {(GPU,): 0}
    assert values(text, "aqua_gpu_trouble") == {(GPU,): bool(SNAPSHOT.gpus[0].trouble)}
    link = (PAIR.source, PAIR.target)
    assert values(text, "aqua_link_bandwidth_bytes_per_second") == {link: 3e11}
    assert values(text, "aqua_link_latency_seconds") == {link: 8e-6}
    assert values(text, "aqua_link_slow") == {link: 1}
    assert values(text, "aqua_sessions") == {(): 1}
    assert values(text, "aqua_tenant_leased_bytes") == {(TENANT,): 4 * MIB}
    assert values(text, "aqua_host_reserved_bytes") == {(): 12 * MIB}
    assert values(text, "aqua_host_pool_bytes") == {(): 100 * MIB}
    assert values(text, "aqua_scrape_stale") == {(): 0}
    assert f'version="{__version__}"' in text


def test_leases_are_counted_by_state() -> None:
    """Every state is there, those without a lease as 0."""
    leases = (LEASE, LEASE, replace(LEASE, state=LeaseState.QUARANTINED))
    snapshot = replace(SNAPSHOT, leases=leases)
    with served(lambda: Reading(snapshot=snapshot, counts=Tally().counts(), faults=0)) as url:
        found = values(scrape(url), "aqua_leases")
    expected = dict.fromkeys(((state.value,) for state in LeaseState), 0.0)
    assert found == {**expected, ("leased",): 2, ("quarantined",): 1}


def test_every_label_set_is_there_before_anything_happened() -> None:
    """A rate over a counter is right from its first increase on."""
    with served(reading) as url:
        text = scrape(url)
    assert values(text, "aqua_lease_grants") == {("granted",): 0, ("denied",): 0}
    assert set(values(text, "aqua_lease_denials").values()) == {0}
    revokes = values(text, "aqua_revokes")
    assert set(revokes) == {(how.value, why.value) for why in RevokeReason for how in RevokeOutcome}
    assert set(revokes.values()) == {0}
    samples = {sample.name for sample in families(text)["aqua_revoke_duration_seconds"].samples}
    suffixes = ("bucket", "count", "sum")
    assert samples == {f"aqua_revoke_duration_seconds_{suffix}" for suffix in suffixes}
    tiers = {("peer",): 0, ("host",): 0}
    assert values(text, "aqua_offload_bytes") == values(text, "aqua_fetch_bytes") == tiers
    assert values(text, "aqua_fallback")["no_room",] == 0
    assert 'aqua_fetch_duration_seconds_count{tier="mixed"} 0.0' in text


def test_counters_follow_the_tally() -> None:
    """A denial and a revoke that were counted are in the next scrape."""
    tally = Tally()
    with served(lambda: reading(tally)) as url:
        tally.event(REQUESTED)
        tally.refused(REQUESTED, QuotaExceeded("all used"))
        tally.instructed(
            move(LeaseState.REVOKING, LeaseState.RETURNED, reason=RevokeReason.DEAD, seconds=0.5)
        )
        text = scrape(url)
    assert values(text, "aqua_lease_denials")["quota",] == 1
    assert values(text, "aqua_lease_grants")["denied",] == 1
    assert values(text, "aqua_revokes")["returned", "dead"] == 1
    assert "aqua_revoke_duration_seconds_sum 0.5" in text
    assert 'aqua_revoke_duration_seconds_bucket{le="0.25"} 0.0' in text
    assert 'aqua_revoke_duration_seconds_bucket{le="0.5"} 1.0' in text


def test_what_was_lost_with_a_keeper_is_counted_by_gpu() -> None:
    """Its end, and each lease whose bytes went with it; 0 before."""
    tally = Tally()
    with served(lambda: reading(tally)) as url:
        before = scrape(url)
        tally.event(KeeperEnded(gpus=(GPU,)))
        tally.instructed(move(LeaseState.LEASED, LeaseState.LOST))
        after = scrape(url)
    for text, count in ((before, 0), (after, 1)):
        assert values(text, "aqua_keeper_ends") == {(GPU,): count}
        assert values(text, "aqua_leases_lost") == {(GPU,): count}


def test_clients_figures_are_shown_as_they_are_summed() -> None:
    """Bytes by tier, fallbacks by reason, and a histogram by tier."""
    clients = ClientTally()
    clients.greeted(SESSION_ID, None)
    durations = FetchDurations(counts=(1, 2, *[0] * 8), sum_nanoseconds=1_500_000)
    clients.said(
        SESSION_ID,
        ClientFigures(
            offload_bytes={"peer": 1, "host": 2},
            fetch_bytes={"peer": 3, "host": 4},
            evacuated_bytes=5,
            promoted_bytes=6,
            fallbacks={"breaker": 6, "mischief": 7},
            fetch_durations={"peer": durations},
        ),
    )
    with served(lambda: replace(reading(), clients=clients.totals())) as url:
        text = scrape(url)
    assert values(text, "aqua_offload_bytes") == {("peer",): 1, ("host",): 2}
    assert values(text, "aqua_fetch_bytes") == {("peer",): 3, ("host",): 4}
    assert values(text, "aqua_evacuated_bytes") == {(): 5}
    assert values(text, "aqua_promoted_bytes") == {(): 6}
    fallbacks = {label: n for label, n in values(text, "aqua_fallback").items() if n}
    assert fallbacks == {("breaker",): 6, ("other",): 7}
    assert 'aqua_fetch_duration_seconds_bucket{le="0.0001",tier="peer"} 1.0' in text
    assert 'aqua_fetch_duration_seconds_bucket{le="0.0003",tier="peer"} 3.0' in text
    assert 'aqua_fetch_duration_seconds_sum{tier="peer"} 0.0015' in text


def test_promtool_finds_nothing_to_complain_about() -> None:
    """Names, units, help and types are as Prometheus wants them."""
    promtool = require_tool("promtool")
    with served(reading) as url:
        text = scrape(url)
    check = subprocess.run(
        [promtool, "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (check.returncode, check.stdout + check.stderr) == (0, "")


def test_readings_are_made_on_the_loops_thread() -> None:
    """The scraping thread never touches the books itself."""
    made_on: list[int] = []

    def read() -> Reading:
        made_on.append(threading.get_ident())
        return reading()

    async def scenario() -> Reading | None:
        return await asyncio.to_thread(on_loop(asyncio.get_running_loop(), read))

    assert asyncio.run(scenario()) == reading()
    assert made_on == [threading.get_ident()]


def test_an_error_while_reading_is_told_to_whoever_asked() -> None:
    """A fault fails the scrape and never the loop."""

    def read() -> Reading:
        raise ZeroDivisionError

    async def scenario() -> None:
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(on_loop(asyncio.get_running_loop(), read))

    asyncio.run(scenario())


def test_a_hung_loop_gives_the_last_reading_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scrape ends in time with what was known; when the loop is back it is fresh again."""
    monkeypatch.setattr(metrics, "ANSWER_SECONDS", 0.2)
    hangs, goes_on = threading.Event(), threading.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def hang() -> None:
        hangs.set()
        goes_on.wait(30)

    try:
        with served(on_loop(loop, reading)) as url:
            assert values(scrape(url), "aqua_scrape_stale") == {(): 0}
            loop.call_soon_threadsafe(hang)
            assert hangs.wait(10)
            stale = scrape(url)
            assert values(stale, "aqua_scrape_stale") == {(): 1}
            assert values(stale, "aqua_sessions") == {(): 1}
            goes_on.set()
            assert values(scrape(url), "aqua_scrape_stale") == {(): 0}
    finally:
        goes_on.set()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_a_closed_loop_is_stale_and_nothing_was_ever_known() -> None:
    """The last scrape of a daemon that ends shows that it is stale, and no invented zeros."""
    loop = asyncio.new_event_loop()
    loop.close()
    with served(on_loop(loop, reading)) as url:
        assert set(families(scrape(url))) == {"aqua_scrape_stale", "aqua_build_info"}


def has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6_loopback(), reason="not run here: an IPv6 loopback is missing")
def test_an_ipv6_loopback_is_served_too() -> None:
    """The printed address is one that a scraper can use."""
    with closing(MetricsServer(NodeCollector(reading), host="::1", port=0)) as server:
        assert server.url.startswith("http://[::1]:")
        assert "aqua_build_info" in scrape(server.url)


def test_closing_frees_the_port() -> None:
    """Another server can listen on it, and while it is taken a second one is refused."""
    first = MetricsServer(NodeCollector(reading), host="127.0.0.1", port=0)
    port = int(first.url.rsplit(":", 1)[1].removesuffix("/metrics"))
    with pytest.raises(OSError, match="in use"):
        MetricsServer(NodeCollector(reading), host="127.0.0.1", port=port)
    first.close()
    first.close()  # twice is once
    with closing(MetricsServer(NodeCollector(reading), host="127.0.0.1", port=port)) as second:
        assert scrape(second.url)
