"""`aquactl drain` and `undrain` on a real node: who is hit moves out, nothing is lent until the end."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

import aqua_client
from tests.end_to_end.borrower import borrowing
from tests.nodes import MIB, Node, environment, running_node, wait_until


@pytest.fixture
def node() -> Iterator[Node]:
    with running_node(gpus=2, gpu_bytes=64 * MIB) as running:
        yield running


def aquactl(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aqua_daemon.ctl", *words, "--socket", node.socket],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def drained(node: Node) -> list[str]:
    run = aquactl(node, "status", "--json")
    assert run.returncode == 0, run.stderr
    return [gpu["gpu"] for gpu in json.loads(run.stdout)["gpus"] if gpu["drained"]]


@pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning")
def test_borrowers_move_out_and_nothing_is_lent_until_undrained(node: Node) -> None:
    """Every byte survives, through a restart of the daemon too; afterwards data is lent again."""
    tensor = torch.arange(MIB, dtype=torch.int32)
    with aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client:
        handle = client.offload(tensor)
        assert handle.tier == "peer"
        run = aquactl(node, "drain", "SHM-1", "--deadline", "20")
        assert run.returncode == 0, run.stderr
        assert str(os.getpid()) in run.stdout
        assert "of 1 sessions of 1 tenants" in run.stdout
        assert run.stdout.endswith("SHM-1: nothing is lent there any more\n")
        assert handle.tier == "host"
        assert client.offload(tensor).tier == "host"
        node.restart_daemon()
        assert drained(node) == ["SHM-1"]
        wait_until(lambda: client.stats()["attached"], what="the client is back")
        assert client.offload(tensor).tier == "host"
        assert aquactl(node, "undrain", "SHM-1").stdout == "SHM-1: lent again\n"
        assert aquactl(node, "undrain", "--all").stdout == "none of them was drained\n"
        wait_until(lambda: client.offload(tensor).tier == "peer", what="it is lent again")
        assert torch.equal(handle.fetch(), tensor)


def test_a_dry_run_names_who_would_be_hit_and_changes_nothing(node: Node) -> None:
    """For people and for machines; nobody is asked for anything."""
    with borrowing(node) as borrower:
        slab = borrower.borrow(8 * MIB)
        run = aquactl(node, "drain", "--all", "--dry-run")
        assert run.returncode == 0, run.stderr
        assert run.stdout.endswith("dry run: nothing has changed\n")
        assert str(os.getpid()) in run.stdout
        document = json.loads(aquactl(node, "drain", "--all", "--dry-run", "--json").stdout)
        (hit,) = document["hits"]
        assert (hit["gpu"], hit["pid"], hit["nbytes"]) == ("SHM-1", os.getpid(), 8 * MIB)
        assert document["dry_run"]
        assert drained(node) == []
        assert borrower.revokes == []
        borrower.give_back(slab)


def test_who_does_not_move_out_is_named_and_the_status_is_1(node: Node) -> None:
    """Tenant, process and bytes; once it gives back, draining again is clean."""
    with borrowing(node) as borrower:
        slab = borrower.borrow(8 * MIB)
        run = aquactl(node, "drain", "SHM-1", "--deadline", "0.2")
        assert run.returncode == 1
        tenant = f"uid-{os.getuid()}"
        assert f"quarantined on SHM-1: {8 * MIB} bytes in 1 leases of {tenant}" in run.stderr
        assert f"process {os.getpid()}" in run.stderr
        assert [notice.reason for notice in borrower.revokes] == ["drain"]
        borrower.acknowledge(slab)
        again = aquactl(node, "drain", "SHM-1", "--json")
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["quarantined"] == []
        revokes = 'aqua_revokes_total{outcome="quarantined",reason="drain"}'
        assert node.scrape()[revokes] == 1


def test_what_is_not_waited_for_is_not_told(node: Node) -> None:
    """--no-wait ends with the plan; the borrower has its time, and its way out."""
    with borrowing(node) as borrower:
        slab = borrower.borrow(8 * MIB)
        run = aquactl(node, "drain", "SHM-1", "--no-wait", "--deadline", "30")
        assert (run.returncode, run.stderr) == (0, "")
        wait_until(lambda: borrower.revokes, what="it is asked")
        borrower.acknowledge(slab)


@pytest.mark.parametrize(("answer", "status"), [("n", 1), ("y", 0)])
def test_on_a_terminal_it_asks_first(node: Node, answer: str, status: int) -> None:
    """No is the answer to nothing said; --yes is for scripts, and without a terminal none is asked."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "aqua_daemon.ctl", "drain", "SHM-1", "--socket", node.socket],
        env=environment(),
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.write(ours, f"{answer}\n".encode())
        _, asked = process.communicate(timeout=40)
        assert process.returncode == status
    os.close(ours)
    os.close(theirs)
    assert "Drain SHM-1? [y/N]" in asked
    assert drained(node) == (["SHM-1"] if answer == "y" else [])


def test_a_gpu_that_is_not_there_is_named(node: Node) -> None:
    """With those that are."""
    run = aquactl(node, "drain", "SHM-7")
    assert run.returncode == 1
    assert "SHM-7 is not on this node; it has SHM-0, SHM-1" in run.stderr
