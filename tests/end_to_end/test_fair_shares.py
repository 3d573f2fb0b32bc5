"""Two tenants and one node that is full: a newcomer comes to its share without asking twice."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import aqua_client
from tests.end_to_end.test_paging import noise
from tests.nodes import MIB, Node, environment, running_node, wait_until

# Leases need not be old here, so that nobody waits for that; and all slabs are small, because a share
# is reached as far as whole slabs allow.
RESTLESS_DAEMON = """
import sys
from aqua_daemon import config
from aqua_daemon.cli import main
from aqua_daemon.core import balancing
balancing.REST_SECONDS = 0.2
config.LARGEST_SHM_SLAB_BYTES = config.SMALLEST_SHM_SLAB_BYTES
sys.exit(main())
"""
SLAB = 4 * MIB


@contextmanager
def tenant(name: str, node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[aqua_client.Client]:
    """A client under a sub-tenant's name."""
    with monkeypatch.context() as patch:
        patch.setenv("AQUA_TENANT", name)
        client = aqua_client.connect(socket=node.socket, home_gpu="SHM-0")
    with client, warnings.catch_warnings():
        warnings.simplefilter("ignore", aqua_client.AquaWarning)
        yield client


def leased_bytes(client: aqua_client.Client) -> int:
    leases = client.stats()["leases"]
    assert isinstance(leases, dict)
    return sum(int(one["bytes"]) for one in leases.values())


def peer_bytes(client: aqua_client.Client) -> int:
    return int(str(client.stats()["peer_bytes"]))


def events(node: Node) -> str:
    words = [
        sys.executable,
        "-m",
        "aqua_daemon.ctl",
        "events",
        "-n",
        "1000",
        "--socket",
        node.socket,
    ]
    done = subprocess.run(
        words, env=environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.limit(90)
def test_a_newcomer_on_a_full_node_comes_to_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """It only parks; what found no room is brought back to the leases that the other gives up."""
    with (
        running_node(
            gpus=3,
            gpu_bytes=64 * MIB,
            program=[sys.executable, "-c", RESTLESS_DAEMON],
            rebalance_seconds=1.0,
            term_seconds=1.5,
        ) as node,
        tenant("a", node, monkeypatch) as first,
        tenant("b", node, monkeypatch) as second,
    ):
        tensors = [noise(SLAB, seed=seed) for seed in range(60)]
        parked = [first.offload(one) for one in tensors[:30]]
        all_bytes = leased_bytes(first)
        assert {one.tier for one in parked} == {"peer", "host"}
        parked += [second.offload(one) for one in tensors[30:]]
        assert leased_bytes(second) == 0
        wait_until(
            lambda: (
                abs(leased_bytes(first) - leased_bytes(second)) <= 2 * SLAB
                and leased_bytes(first) + leased_bytes(second) >= all_bytes - 2 * SLAB
            ),
            seconds=30.0,
            what="equal shares",
        )
        wait_until(lambda: peer_bytes(second) >= all_bytes // 2 - 2 * SLAB, what="brought back")
        assert all(torch.equal(h.fetch(), t) for h, t in zip(parked, tensors, strict=True))
        assert re.search(r"rebalance.*\+a holds .*\+b has less", events(node))
        wait_until(
            lambda: node.scrape()["aqua_promoted_bytes_total"] >= all_bytes // 2 - 2 * SLAB,
            what="told with a keepalive",
        )
        assert node.scrape()['aqua_rebalance_moves_total{direction="to_fair_share"}'] >= 1
