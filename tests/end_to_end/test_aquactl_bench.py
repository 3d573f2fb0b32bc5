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
from tests.fakes.cuda_node import fake_cuda_node
from tests.fakes.fake_cuda.description import GIB
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
    run = bench(node, "--json", "--gpu", "SHM-0", "--gpu", "SHM-1", "--gpu", "SHM-0")
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


@pytest.mark.parametrize(("handles", "gpus"), [("legacy", 3), ("vmm", 2)])
def test_gpus_of_different_keepers_are_measured_on_the_targets_own(
    tmp_path: Path, handles: str, gpus: int
) -> None:
    """By legacy handle and by descriptor, on the made-up driver: each keeper keeps its one context.

    Host memory is measured, too; afterwards nothing is left on any GPU.
    """
    machine = fake_cuda_node(tmp_path, gpus=gpus, memory=2 * GIB)
    with running_node(gpus=0, variables=machine.environment(), handles=handles) as node:
        wait_until(lambda: len(machine.contexts()) == gpus, seconds=20.0, what="contexts")
        wait_until(
            lambda: all(
                node.scrape()[f'aqua_lendable_bytes{{gpu="{one}"}}'] for one in machine.uuids
            ),
            seconds=20.0,
            what="every GPU lends",
        )
        run = bench(node, "--json", "--sizes", "64KiB,4MiB")
        found = json.loads(run.stdout)
        assert [one for one in found["links"] if one["problem"]] == []
        assert len(found["links"]) == gpus * (gpus + 1)
        sums = [""] * 6 if gpus == 3 else []  # of two there is nothing to add up
        assert [one["problem"] for one in found["sums"]] == sums
        assert machine.contexts_made == gpus
        wait_until(lambda: not machine.allocations(), what="all of it is given back")
        assert not machine.freed_while_mapped
        measured = [name for name in node.scrape() if name.startswith("aqua_link_bandwidth")]
        node.restart_daemon()
        assert [
            name for name in node.scrape() if name.startswith("aqua_link_bandwidth")
        ] == measured
        assert len(measured) == len(found["links"]) + len(found["sums"])
