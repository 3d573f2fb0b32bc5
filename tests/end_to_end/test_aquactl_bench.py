"""`aquactl bench links` on a real node: figures of each pair, and what hangs costs only its own."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from aqua_protos import broker_pb2

import aqua_client
from aqua_daemon.ctl.link import opened
from tests.nodes import MIB, Node, environment, running_node, stop_process, wait_until

AQUACTL = [sys.executable, "-m", "aqua_daemon.ctl"]


@pytest.fixture
def node() -> Iterator[Node]:
    with running_node(gpus=2, gpu_bytes=64 * MIB) as running:
        yield running


def bench(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AQUACTL, "bench", "links", *words, "--socket", node.socket],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def probed(node: Node) -> broker_pb2.LinkProbe:
    """One link, as aquactl asks for it."""
    request = broker_pb2.ProbeLinksRequest(
        request_id=secrets.token_hex(16), links=[broker_pb2.Link(source="SHM-0", target="SHM-1")]
    )
    with opened(Path(node.socket), seconds=10.0) as link:
        return link.call("ProbeLinks", request, broker_pb2.ProbeLinksReply).probes[0]


def test_each_pair_is_measured_by_size(node: Node) -> None:
    """Tables for people, figures for machines; host memory is not beside stand-ins, and says so."""
    run = bench(node, "--sizes", "64KiB,1MiB")
    assert run.returncode == 0, run.stderr
    assert "GB/s, copies of 1MiB" in run.stdout
    assert "a stand-in GPU is host memory itself" in run.stdout
    run = bench(node, "--json")
    links = json.loads(run.stdout)["links"]
    measured = {(one["source"], one["target"]) for one in links if one["bytes_per_second"]}
    assert measured == {("SHM-0", "SHM-1"), ("SHM-1", "SHM-0")}
    wait_until(
        lambda: node.scrape()['aqua_pool_bytes{gpu="SHM-1",state="free"}'] == 64 * MIB,
        what="nothing stays used",
    )


def test_a_keeper_that_hangs_loses_nothing(node: Node) -> None:
    """It is waited for no longer than 4 s; then it goes on, and so does what it holds."""
    tensor = torch.arange(MIB, dtype=torch.int32)
    with aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client:
        handle = client.offload(tensor)
        assert handle.tier == "peer"
        keeper = node.keeper_pid()
        stop_process(keeper)
        try:
            probe = probed(node)
        finally:
            os.kill(keeper, signal.SIGCONT)
        assert "no answer within 4 s" in probe.problem
        assert torch.equal(handle.fetch(), tensor)
        wait_until(lambda: probed(node).samples, what="it measures again")
        assert client.offload(tensor).tier == "peer"
