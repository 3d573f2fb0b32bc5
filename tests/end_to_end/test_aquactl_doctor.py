"""`aquactl doctor` beside a real node: up, hung, and down."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from aqua_daemon import __version__
from tests.nodes import MIB, Node, environment, running_node


@pytest.fixture
def node() -> Iterator[Node]:
    with running_node(gpus=2, gpu_bytes=64 * MIB) as running:
        yield running


def examined(node: Node, *words: str) -> dict[str, tuple[str, str]]:
    """Level and sentence of each check; the exit status must say whether one failed."""
    command = [sys.executable, "-m", "aqua_daemon.ctl", "doctor", "--json", *words]
    run = subprocess.run(
        [*command, "--socket", node.socket, "--timeout", "2"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.stderr == ""
    found = json.loads(run.stdout)
    assert found["schema"] == 1
    assert run.returncode == (1 if found["level"] == "fail" else 0)
    return {one["check"]: (one["level"], one["sentence"]) for one in found["findings"]}


def test_a_serving_node_is_found_well(node: Node) -> None:
    """Daemon, keepers, socket, descriptors and metrics are ok; no line of the node fails."""
    address = node.metrics_url.removeprefix("http://").removesuffix("/metrics")
    found = examined(node, "--metrics", address)
    assert found["daemon"] == ("ok", f"{__version__} answers, process {node.pid}")
    assert found["keepers"] == ("ok", "answer for 2 GPUs")
    assert found["metrics"] == ("ok", f"served at {address}")
    assert found["node"][0] == found["socket"][0] == found["group"][0] == "ok"
    assert "the daemon may open" in found["open files"][1]
    # Told from the daemon's own arguments: it was given any free port.
    assert examined(node)["metrics"][0] == "warn"


def test_a_hung_daemon_is_named_and_the_rest_is_looked_at(node: Node) -> None:
    """It costs the limit, not for ever; what only it knows is a warning."""
    node.stop_daemon()
    found = examined(node, "--metrics", "127.0.0.1:0")
    assert found["daemon"][0] == "fail"
    assert "no answer in time" in found["daemon"][1]
    assert found["socket"][0] == "ok"
    assert found["keepers"][0] == found["node"][0] == "warn"
    assert found["kernel"][0] in {"ok", "warn"}


def test_a_dead_daemon_is_named_and_the_rest_is_looked_at(node: Node) -> None:
    """Its socket is left behind; nobody listens."""
    node.kill_daemon()
    found = examined(node)
    assert found["daemon"][0] == "fail"
    assert "Connection refused" in found["daemon"][1]
    assert found["open files"][0] == "warn"
    assert found["memory files"][0] == "ok"


def test_the_report_is_plain_where_nobody_sees_colours(node: Node) -> None:
    """Piped it has no escape codes, a line for each check, and the sum at its end."""
    command = [sys.executable, "-m", "aqua_daemon.ctl", "doctor", "--socket", node.socket]
    run = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert "\x1b" not in run.stdout
    for check in ("kernel", "namespaces", "NVIDIA driver", "daemon"):
        assert f"  {check}  " in run.stdout
    assert run.stdout.splitlines()[-1].startswith(("OK", "WARN", "FAIL"))
