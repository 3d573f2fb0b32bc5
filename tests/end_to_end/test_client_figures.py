"""What clients say that they did, in the metrics of a real node: once each, through restarts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

import aqua_client
from aqua_client.session import Session
from tests.nodes import MIB, Node, running_node, wait_until

TERM_SECONDS = 1.5  # a keepalive each half second


@contextmanager
def parking(node: Node) -> Iterator[aqua_client.Client]:
    with (
        warnings.catch_warnings(),
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        warnings.simplefilter("ignore")  # of host memory, which is meant here
        yield client


def shows(node: Node, name: str, value: float) -> None:
    """Return when a metric has that value; it comes with the next keepalive."""
    wait_until(lambda: node.scrape()[name] == value, what=f"{name} is {value}: {node.scrape()}")


def test_bytes_durations_and_fallbacks_are_in_the_metrics() -> None:
    """By tier and reason, as the client's own counters have them."""
    with (
        running_node(gpus=2, gpu_bytes=64 * MIB, term_seconds=TERM_SECONDS) as node,
        parking(node) as client,
    ):
        kept = client.offload(torch.zeros(4 * MIB, dtype=torch.uint8))
        kept.fetch()
        client.offload(torch.zeros(1024, dtype=torch.uint8)).fetch()  # too small to be timed
        big = client.offload(torch.zeros(96 * MIB, dtype=torch.uint8))
        assert big.tier == "mixed"
        big.fetch()
        stats = client.stats()
        shows(node, 'aqua_offload_bytes_total{tier="peer"}', float(str(stats["peer_out_bytes"])))
        shows(node, 'aqua_offload_bytes_total{tier="host"}', float(str(stats["host_out_bytes"])))
        shows(node, 'aqua_fetch_bytes_total{tier="peer"}', float(str(stats["peer_in_bytes"])))
        shows(node, 'aqua_fetch_duration_seconds_count{tier="peer"}', 1)
        shows(node, 'aqua_fetch_duration_seconds_count{tier="mixed"}', 1)
        shows(node, f'aqua_fallback_total{{reason="{big.reason}"}}', 1)
        assert node.scrape()['aqua_fetch_duration_seconds_sum{tier="mixed"}'] > 0


def test_a_short_life_is_told_at_its_end() -> None:
    """A client that closes before its first keepalive says what it did with its goodbye."""
    with running_node(gpus=2, gpu_bytes=64 * MIB) as node:
        with parking(node) as client:
            client.offload(torch.zeros(2 * MIB, dtype=torch.uint8)).release()
        shows(node, 'aqua_offload_bytes_total{tier="peer"}', 2 * MIB)


def heard_bytes(client: aqua_client.Client) -> int:
    """Of what was parked on peers, how much the client knows to be counted."""
    session = client._pager._lender
    assert isinstance(session, Session)
    figures = session._presence._heard_figures
    return figures.peer_offload_bytes if figures else 0


def test_a_restart_counts_nothing_twice_and_loses_nothing() -> None:
    """A new daemon counts from what the old one had answered for: both together are the client's."""
    name = 'aqua_offload_bytes_total{tier="peer"}'
    with (
        running_node(gpus=2, gpu_bytes=64 * MIB, term_seconds=TERM_SECONDS) as node,
        parking(node) as client,
    ):
        client.offload(torch.zeros(2 * MIB, dtype=torch.uint8)).release()
        wait_until(lambda: heard_bytes(client) == 2 * MIB, what="the answer is heard")
        assert node.scrape()[name] == 2 * MIB
        node.kill_daemon()
        kept = client.offload(torch.zeros(MIB, dtype=torch.uint8))  # while nobody counts
        assert kept.tier in {"peer", "host"}
        node.restart_daemon()
        wait_until(lambda: client.stats()["attached"], what="attached to the next daemon")
        client.offload(torch.zeros(3 * MIB, dtype=torch.uint8)).release()
        parked = client.stats()["peer_out_bytes"]
        assert isinstance(parked, int)
        shows(node, name, parked - 2 * MIB)


def test_evacuated_bytes_are_in_the_metrics() -> None:
    """An owner takes its memory back; what was parked there is moved, and counted."""
    with (
        running_node(gpus=2, gpu_bytes=64 * MIB, term_seconds=TERM_SECONDS) as node,
        parking(node) as client,
    ):
        kept = client.offload(torch.ones(16 * MIB, dtype=torch.uint8))
        node.load("SHM-1", 60 * MIB)
        shows(node, "aqua_evacuated_bytes_total", 16 * MIB)
        assert bool(kept.fetch().all())
