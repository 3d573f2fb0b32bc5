"""aquactl against a real node: what it shows is what is there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

import aqua_client
from tests.nodes import MIB, Node, environment, running_node

GPUS = 3


@pytest.fixture
def node() -> Iterator[Node]:
    with running_node(gpus=GPUS, gpu_bytes=64 * MIB) as running:
        yield running


def aquactl(node: Node, *words: str) -> str:
    """What aquactl prints; it must succeed."""
    run = subprocess.run(
        [sys.executable, "-m", "aqua_daemon.ctl", *words, "--socket", node.socket],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def document(node: Node, *words: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(aquactl(node, *words, "--json"))
    assert found["schema"] == 1
    return found


def rows(found: dict[str, object], name: str) -> list[dict[str, object]]:
    listed = found[name]
    assert isinstance(listed, list)
    return listed


def test_status_shows_the_quiet_node(node: Node) -> None:
    """Every GPU with its bytes, nothing lent, a verdict of ok and a next command."""
    found = document(node, "status")
    gpus = rows(found, "gpus")
    assert [gpu["gpu"] for gpu in gpus] == [f"SHM-{number}" for number in range(GPUS)]
    assert all(gpu["total_bytes"] == gpu["free_bytes"] == 64 * MIB for gpu in gpus)
    verdict = found["verdict"]
    assert isinstance(verdict, dict)
    assert verdict["level"] == "ok"
    screen = aquactl(node, "status")
    assert "\x1b" not in screen  # plain when not a terminal
    assert all(f"SHM-{number}" in screen for number in range(GPUS))
    assert "next  aquactl" in screen


def test_a_lease_is_seen_while_it_lives(node: Node) -> None:
    """The lease's line names lender, borrower, class, size and pid; status counts its bytes."""
    assert aquactl(node, "leases") == "no leases\n"
    with aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client:
        handle = client.offload(torch.ones(MIB, dtype=torch.uint8))
        (lease,) = rows(document(node, "leases"), "leases")
        assert lease["state"] == "leased"
        assert lease["safety_class"] == "store"
        assert lease["borrower_gpu"] == "SHM-0"
        assert lease["lender_gpu"] in {"SHM-1", "SHM-2"}
        lent = {
            str(gpu["gpu"]): gpu["lent_bytes"] for gpu in rows(document(node, "status"), "gpus")
        }
        assert lent.pop(str(lease["lender_gpu"])) == lease["nbytes"]
        assert set(lent.values()) == {0}
        assert str(lease["lease_id"])[:12] in aquactl(node, "leases", "--state", "leased")
        assert aquactl(node, "leases", "--gpu", "SHM-0") == "no leases\n"
        handle.release()


def test_status_works_through_a_full_event_list(node: Node) -> None:
    """The last events are lines for people, newest last, and name what moved."""
    with aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client:
        client.offload(torch.ones(MIB, dtype=torch.uint8)).release()
    events = rows(document(node, "status"), "events")
    assert events
    ages = [float(str(event["seconds_ago"])) for event in events]
    assert ages == sorted(ages, reverse=True)
    assert any("leased" in str(event["text"]) for event in events)
