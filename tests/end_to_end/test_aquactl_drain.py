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
from tests.nodes import MIB, Node, environment, read_line, running_node, wait_until

AQUACTL = [sys.executable, "-m", "aqua_daemon.ctl"]


@pytest.fixture
def node() -> Iterator[Node]:
    with running_node(gpus=2, gpu_bytes=64 * MIB) as running:
        yield running


def aquactl(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AQUACTL, *words, "--socket", node.socket],
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
        assert "of 1 session of 1 tenant;" in run.stdout
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
        assert f"quarantined on SHM-1: {8 * MIB} bytes in 1 lease of {tenant}" in run.stderr
        assert f"process {os.getpid()}" in run.stderr
        assert [notice.reason for notice in borrower.revokes] == ["drain"]
        borrower.acknowledge(slab)
        again = aquactl(node, "drain", "SHM-1", "--json")
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["quarantined"] == []
        revokes = 'aqua_revokes_total{outcome="quarantined",reason="drain"}'
        assert node.scrape()[revokes] == 1


def test_it_is_followed_through_a_restart_of_the_daemon(node: Node) -> None:
    """The next daemon asks again, gives the holder a term to come back, and the drain ends clean."""
    with borrowing(node) as borrower:
        slab = borrower.borrow(8 * MIB)
        with subprocess.Popen(
            [*AQUACTL, "drain", "SHM-1", "--deadline", "60", "--socket", node.socket],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            while "8 MiB still lent" not in (line := read_line(process.stdout, seconds=20)):
                assert line, "it is followed"
            assert node.scrape()['aqua_gpu_drained{gpu="SHM-1"}'] == 1
            node.kill_daemon()
            assert process.stderr is not None
            gone = read_line(process.stderr, seconds=20)
            assert gone == "aquactl: the daemon is gone; waiting for it\n"
            node.start_daemon()
            wait_until(lambda: len(borrower.revokes) > 1, what="it is asked again")
            assert {notice.reason for notice in borrower.revokes} == {"drain"}
            borrower.acknowledge(slab)
            told, _ = process.communicate(timeout=40)
            assert process.returncode == 0, told
        assert told.endswith("SHM-1: nothing is lent there any more\n")


def test_what_is_not_waited_for_is_not_told(node: Node) -> None:
    """--no-wait ends with the plan; the borrower has its time, and its way out."""
    with borrowing(node) as borrower:
        slab = borrower.borrow(8 * MIB)
        run = aquactl(node, "drain", "SHM-1", "--no-wait", "--deadline", "30")
        assert (run.returncode, run.stderr) == (0, "")
        wait_until(lambda: borrower.revokes, what="it is asked")
        borrower.acknowledge(slab)


def test_on_a_terminal_it_asks_first(node: Node) -> None:
    """No changes nothing; a GPU that is not there is named before anything is asked."""
    status, asked = on_terminal(node, "SHM-7", answer="y")
    assert (status, "SHM-7 is not on this node; it has SHM-0, SHM-1" in asked) == (1, True)
    status, asked = on_terminal(node, "SHM-1", answer="n")
    assert (status, "Drain SHM-1? [y/N]" in asked) == (1, True)
    assert drained(node) == []
    status, asked = on_terminal(node, "SHM-1", answer="y")
    assert (status, "Drain SHM-1? [y/N]" in asked) == (0, True)
    assert drained(node) == ["SHM-1"]


def on_terminal(node: Node, gpu: str, *, answer: str) -> tuple[int, str]:
    """Drain with a terminal to answer on; the exit status, and what was asked."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        run = subprocess.run(
            [*AQUACTL, "drain", gpu, "--socket", node.socket],
            env=environment(),
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=40,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    return run.returncode, run.stderr
