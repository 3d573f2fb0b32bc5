"""aquactl against a real node: what it shows is what is there."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress

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


def on_terminal(node: Node, *words: str, **variables: str) -> str:
    """What aquactl writes to a terminal of the smallest size."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    run = subprocess.Popen(
        [sys.executable, "-m", "aqua_daemon.ctl", *words, "--socket", node.socket],
        env=environment(TERM="xterm-256color", **variables),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    with suppress(OSError):  # EIO: the other end is closed
        while chunk := os.read(ours, 65536):
            written += chunk
    os.close(ours)
    assert run.wait(30) == 0
    return written.decode()


def test_status_on_a_terminal_fits_it_and_is_coloured_unless_told_otherwise(node: Node) -> None:
    """The same words with and without colours; the prompt stays on the screen."""
    with aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client:
        handle = client.offload(torch.ones(MIB, dtype=torch.uint8))
        coloured = on_terminal(node, "status")
        plain = on_terminal(node, "status", NO_COLOR="1")
        handle.release()
    hue = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
    assert hue.search(coloured)
    assert not hue.search(plain)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", plain).splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "next  aquactl leases"


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


def test_a_gpu_that_is_never_lent_is_shown_with_its_policy() -> None:
    """Its neighbour lends; status says which one does not, and why."""
    with running_node(gpus=2, lending_of="SHM-1=never") as node:
        status = json.loads(aquactl(node, "status", "--json"))
        policies = {gpu["gpu"]: (gpu["lending"], gpu["waits_for"]) for gpu in status["gpus"]}
        assert policies["SHM-0"] == ("auto", "")
        assert policies["SHM-1"] == ("never", "its lending policy is `never`")
        assert "SHM-1 lends nothing: its lending policy is `never`" in aquactl(node, "status")
