"""A node on the oldest grpcio and protobuf that are promised, from the bare checkout, without torch."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

import aqua_client
from tests.conftest import require_path
from tests.nodes import MIB, Node, environment, running_node
from tests.wire.test_generated_code import TOOLS_PYTHON

PROGRAM = (str(TOOLS_PYTHON), "-m", "aqua_daemon")


@pytest.mark.limit(120)
def test_a_node_on_the_oldest_releases_serves_a_client_on_the_newest() -> None:
    """Daemon, keeper and aquactl run there, and bytes come back as they went."""
    require_path(TOOLS_PYTHON, "a node on grpcio 1.71 and protobuf 5.29")
    with running_node(gpus=2, gpu_bytes=64 * MIB, program=PROGRAM) as node:
        assert {interpreter(pid) for pid in (node.pid, node.keeper_pid())} == {str(TOOLS_PYTHON)}
        with aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client:
            parked = client.offload(torch.arange(MIB))
            assert parked.tier == "peer"
            assert torch.equal(parked.fetch(), torch.arange(MIB))
            assert [gpu["lent_bytes"] for gpu in gpus(node)] == [0, 8 * MIB]


def gpus(node: Node) -> list[dict[str, object]]:
    words = [str(TOOLS_PYTHON), "-m", "aqua_daemon.ctl", "status", "--json"]
    run = subprocess.run(
        [*words, "--socket", node.socket],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found: list[dict[str, object]] = json.loads(run.stdout)["gpus"]
    return found


def interpreter(pid: int) -> str:
    """The interpreter that a process was started with."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]
