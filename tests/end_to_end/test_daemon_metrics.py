"""The metrics of a real node equal its state, before, during and after whatever happens on it."""

from __future__ import annotations

import subprocess
import urllib.request
from collections import Counter

import pytest

from aqua_client.errors import Refused
from aqua_client.records import SafetyClass
from tests.conftest import require_tool
from tests.end_to_end.borrower import Borrower, borrowing
from tests.nodes import (
    MIB,
    PROGRAM,
    Node,
    environment,
    running_node,
    short_directory,
    wait_until,
)

GPUS = 3
GPU_BYTES = 64 * MIB


def pool(metrics: dict[str, float], gpu: str) -> dict[str, float]:
    """A GPU's bytes by state."""
    start = f'aqua_pool_bytes{{gpu="{gpu}",state="'
    return {
        name.removeprefix(start).removesuffix('"}'): value
        for name, value in metrics.items()
        if name.startswith(start)
    }


def check_sums(metrics: dict[str, float]) -> None:
    """What must hold at every moment, whatever is going on."""
    for number in range(GPUS):
        assert sum(pool(metrics, f"SHM-{number}").values()) == GPU_BYTES
    assert metrics["aqua_invariant_violations_total"] == metrics["aqua_faults_total"] == 0


def lent(metrics: dict[str, float]) -> dict[str, float]:
    found = {f"SHM-{number}": pool(metrics, f"SHM-{number}")["lent"] for number in range(GPUS)}
    return {gpu: nbytes for gpu, nbytes in found.items() if nbytes}


def held(borrower: Borrower) -> dict[str, float]:
    found: Counter[str] = Counter()
    for slab in borrower.slabs:
        found[slab.grant.lender_gpu] += slab.grant.nbytes
    return dict(found)


def leases(metrics: dict[str, float], state: str) -> float:
    return metrics[f'aqua_leases{{state="{state}"}}']


def total(metrics: dict[str, float], name: str) -> float:
    """A counter, all of its labels together."""
    return sum(value for key, value in metrics.items() if key.split("{")[0] == name)


def test_leases_are_in_the_metrics_while_they_live() -> None:
    """Bytes by GPU, leases, sessions, tenant and grants: each follows what the borrower holds."""
    with running_node(gpus=GPUS, gpu_bytes=GPU_BYTES) as node, borrowing(node) as borrower:
        slabs = [borrower.borrow(nbytes) for nbytes in (4 * MIB, 8 * MIB, 16 * MIB)]
        metrics = node.scrape()
        check_sums(metrics)
        assert lent(metrics) == held(borrower)
        assert (leases(metrics, "leased"), metrics["aqua_sessions"]) == (3, 1)
        tenant = f'aqua_tenant_leased_bytes{{tenant="{borrower.session.tenant}"}}'
        assert metrics[tenant] == 28 * MIB
        assert metrics['aqua_lease_grants_total{result="granted"}'] == 3
        for slab in slabs:
            borrower.give_back(slab)
        wait_until(lambda: total(node.scrape(), "aqua_leases") == 0, what="all is freed")
        metrics = node.scrape()
        check_sums(metrics)
        assert lent(metrics) == {}
        assert metrics["aqua_scrubbed_bytes_total"] == 28 * MIB


def test_a_denial_is_counted_under_the_reason_that_the_client_got() -> None:
    """The client's reason is the label, and nothing else has changed."""
    with (
        running_node(gpus=GPUS, gpu_bytes=GPU_BYTES, tenant_quota_bytes="4MiB") as node,
        borrowing(node) as borrower,
    ):
        borrower.borrow(4 * MIB)
        before = node.scrape()
        with pytest.raises(Refused) as caught:
            borrower.borrow(4 * MIB)
        after = node.scrape()
        denial = f'aqua_lease_denials_total{{reason="{caught.value.reason}"}}'
        assert caught.value.reason == "quota"
        assert after[denial] == after['aqua_lease_grants_total{result="denied"}'] == 1
        changed = {name for name in after if after[name] != before[name]}
        assert changed == {denial, 'aqua_lease_grants_total{result="denied"}'}


def await_owners(node: Node, nbytes: int) -> None:
    """An owner is told that it has its bytes before the daemon hears of it."""
    wait_until(
        lambda: pool(node.scrape(), "SHM-1")["used_by_others"] == nbytes, what=f"{nbytes} in use"
    )


def test_an_owner_is_seen_and_what_it_takes_back_is_counted() -> None:
    """Its bytes, the revoke with its reason and its end, and where the slab is meanwhile."""
    with running_node(gpus=2, gpu_bytes=GPU_BYTES) as node, borrowing(node) as borrower:
        slab = borrower.borrow(16 * MIB)
        owner = node.load("SHM-1", 40 * MIB)
        await_owners(node, 40 * MIB)
        more = node.start_load("SHM-1", 16 * MIB)
        wait_until(lambda: borrower.revokes, what="a revoke comes")
        borrower.acknowledge(slab)
        node.await_loaded(more)
        await_owners(node, 56 * MIB)
        metrics = node.scrape()
        returned = 'aqua_revokes_total{outcome="returned",reason="reserve"}'
        assert metrics[returned] == metrics["aqua_revoke_duration_seconds_count"] == 1
        for process in (owner, more):
            process.kill()
            process.wait(10)
        wait_until(
            lambda: pool(node.scrape(), "SHM-1")["free"] == GPU_BYTES, what="owners' bytes are free"
        )


def test_what_does_not_come_back_is_quarantined_and_heals() -> None:
    """Bytes and lease move to quarantine after the deadline, and out of it when acknowledged."""
    with running_node(gpus=2, gpu_bytes=GPU_BYTES) as node, borrowing(node) as borrower:
        slab = borrower.borrow(16 * MIB)
        node.start_load("SHM-1", 56 * MIB)
        quarantined = 'aqua_quarantined_bytes{gpu="SHM-1"}'
        wait_until(lambda: node.scrape()[quarantined] == 16 * MIB, seconds=30, what="quarantine")
        metrics = node.scrape()
        assert sum(pool(metrics, "SHM-1").values()) == GPU_BYTES
        assert leases(metrics, "quarantined") == 1
        assert total(metrics, "aqua_revokes_total") == 1
        assert metrics['aqua_revokes_total{outcome="quarantined",reason="reserve"}'] == 1
        borrower.acknowledge(slab)
        wait_until(lambda: node.scrape()[quarantined] == 0, what="it heals")
        wait_until(lambda: total(node.scrape(), "aqua_leases") == 0, what="it is freed")


def test_a_dead_keepers_gpu_is_unknown_and_not_free() -> None:
    """Nobody knows what is used there: neither free nor lendable, and still its whole capacity."""
    with short_directory() as directory:
        words = ["keeper", "--shm-gpus", "2", "--shm-gpu-bytes", "64MiB"]
        keeper = subprocess.Popen(
            [*PROGRAM, *words, "--socket", str(directory / "aqua.sock.keeper-shm")],
            env=environment(),
        )
        with running_node(directory, gpus=2, gpu_bytes=GPU_BYTES, keepers="external") as node:
            assert pool(node.scrape(), "SHM-1")["free"] == GPU_BYTES
            keeper.kill()
            keeper.wait(10)
            unknown = 'aqua_pool_bytes{gpu="SHM-1",state="unknown"}'
            wait_until(lambda: node.scrape()[unknown] == GPU_BYTES, what="the keeper is missed")
            metrics = node.scrape()
            assert sum(pool(metrics, "SHM-1").values()) == GPU_BYTES
            assert metrics['aqua_lendable_bytes{gpu="SHM-1"}'] == 0


def test_host_room_is_in_the_metrics() -> None:
    """A slab of class store reserves as much host memory, a slab of class cache none."""
    with running_node(gpus=2, gpu_bytes=GPU_BYTES) as node, borrowing(node) as borrower:
        borrower.borrow(4 * MIB, SafetyClass.CACHE)
        assert node.scrape()["aqua_host_reserved_bytes"] == 0
        borrower.borrow(8 * MIB, SafetyClass.STORE)
        assert node.scrape()["aqua_host_reserved_bytes"] == 8 * MIB


def test_a_new_daemon_counts_from_zero_and_knows_the_state() -> None:
    """Gauges are what the keepers and clients say; counters begin again, as Prometheus expects."""
    with running_node(gpus=GPUS, gpu_bytes=GPU_BYTES) as node, borrowing(node) as borrower:
        borrower.borrow(8 * MIB)
        node.restart_daemon(graceful=False)
        metrics = node.scrape()
        check_sums(metrics)
        assert lent(metrics) == held(borrower)
        assert leases(metrics, "leased") == 1
        assert total(metrics, "aqua_lease_grants_total") == 0


def scraped_text(node: Node) -> str:
    with urllib.request.urlopen(node.metrics_url, timeout=10) as reply:  # noqa: S310 - loopback
        return str(reply.read().decode())


def test_promtool_accepts_a_real_nodes_scrape() -> None:
    """With leases, a session and a tenant in it."""
    promtool = require_tool("promtool")
    with running_node(gpus=GPUS, gpu_bytes=GPU_BYTES) as node, borrowing(node) as borrower:
        borrower.borrow(4 * MIB)
        text = scraped_text(node)
    check = subprocess.run(
        [promtool, "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (check.returncode, check.stdout + check.stderr) == (0, "")
