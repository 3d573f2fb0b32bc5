"""`aquactl quota` on a real node: what is set holds, through restarts and crashes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import aqua_client
from tests.nodes import MIB, Node, environment, running_node


@pytest.fixture
def node() -> Iterator[Node]:
    with running_node(gpus=2, gpu_bytes=128 * MIB) as running:
        yield running


def aquactl(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aqua_daemon.ctl", *words, "--socket", node.socket],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def quotas(node: Node, *tenant: str) -> list[dict[str, object]]:
    run = aquactl(node, "quota", "get", *tenant, "--json")
    assert run.returncode == 0, run.stderr
    found: list[dict[str, object]] = json.loads(run.stdout)["quotas"]
    return found


def own_tenant(node: Node) -> str:
    """What this process is called there: aquactl runs in the same cgroup."""
    (mine,) = quotas(node)
    assert str(mine["tenant"]).startswith(f"uid-{os.getuid()}")
    return str(mine["tenant"])


def state_file(node: Node) -> Path:
    return node.directory / "state" / "quotas.json"


def tier_of_next_offload(node: Node) -> tuple[str, str]:
    with aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client:
        handle = client.offload(torch.ones(MIB, dtype=torch.uint8))
        found = handle.tier, handle.reason
        handle.release()
        return found


@pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning")
def test_a_quota_holds_at_once_and_after_a_crash(node: Node) -> None:
    """Set to nothing, data goes to host memory, also with the next daemon; back at the default not."""
    mine = own_tenant(node)
    run = aquactl(node, "quota", "set", mine, "0")
    assert (run.returncode, run.stdout) == (0, f"applied: {mine} has 0 MiB, revision 1\n")
    assert tier_of_next_offload(node) == ("host", "quota")
    assert json.loads(state_file(node).read_text())["quotas"] == {mine: {"bytes": 0, "revision": 1}}
    node.kill_daemon()
    node.start_daemon()
    assert tier_of_next_offload(node) == ("host", "quota")
    (shown,) = quotas(node, mine)
    assert (shown["nbytes"], shown["revision"], shown["is_default"]) == (0, 1, False)
    run = aquactl(node, "quota", "set", mine, "default", "--json")
    answer = json.loads(run.stdout)
    assert (answer["outcome"], answer["quota"]["is_default"]) == ("applied", True)
    assert tier_of_next_offload(node)[0] == "peer"


@pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning")
def test_leases_and_sessions_hold_at_once_and_after_a_crash(node: Node) -> None:
    """Set beside the bytes, one by one; over them data goes to host memory, and it says why."""
    mine = own_tenant(node)
    run = aquactl(node, "quota", "set", mine, "--leases", "0")
    assert (run.returncode, run.stdout) == (
        0,
        f"applied: {mine} has the default, 0 leases, revision 1\n",
    )
    assert tier_of_next_offload(node) == ("host", "quota")
    node.kill_daemon()
    node.start_daemon()
    assert tier_of_next_offload(node) == ("host", "quota")
    run = aquactl(node, "quota", "set", mine, "--leases", "default", "--bytes", "64MiB")
    assert run.stdout == f"applied: {mine} has 64 MiB, revision 2\n"
    assert tier_of_next_offload(node)[0] == "peer"
    run = aquactl(node, "quota", "set", mine, "64MiB", "--sessions", "0")
    assert f"{mine} has 64 MiB, 0 sessions, revision 3" in run.stdout
    assert aquactl(node, "quota", "set", mine, "--sessions", "default").returncode == 0
    shown = aquactl(node, "quota", "get").stdout
    assert "LEASES" in shown
    assert "a process: 64 sessions, 128 calls under way, 4000 a second" in shown
    assert json.loads(state_file(node).read_text())["quotas"] == {
        mine: {"bytes": 64 * MIB, "revision": 4}
    }


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "say what to set"),
        (("1GiB", "--bytes", "1GiB"), "give the bytes once"),
        (("--leases", "-1"), "or default"),
        (("--leases", "1000001"), "or default"),
        (("--sessions", "few"), "or default"),
        (("--weight", "0"), "give a number from 0.01 to 100, or default"),
        (("--priority", "1.5"), "from -1000 to 1000, or default"),
    ],
)
def test_what_is_no_quota_is_a_wrong_call(node: Node, words: tuple[str, ...], says: str) -> None:
    """Exit status 2, with what may be given."""
    run = aquactl(node, "quota", "set", "uid-77", *words)
    assert run.returncode == 2
    assert says in run.stderr


def test_a_weight_and_a_priority_are_shown_where_there_are_any(node: Node) -> None:
    """Set like the rest, and kept; a node without any has no columns for them."""
    assert "WEIGHT" not in aquactl(node, "quota", "get").stdout
    run = aquactl(node, "quota", "set", "uid-77", "--weight", "2.5", "--priority", "-3")
    assert run.stdout == "applied: uid-77 has the default, weight 2.5, priority -3, revision 1\n"
    shown = aquactl(node, "quota", "get").stdout.splitlines()
    assert shown[0].split()[-3:] == ["REVISION", "WEIGHT", "PRIORITY"]
    (line,) = [line for line in shown if line.startswith("uid-77")]
    assert line.split()[-2:] == ["2.5", "-3"]
    kept = json.loads(state_file(node).read_text())["quotas"]["uid-77"]
    assert (kept["weight"], kept["priority"]) == (2.5, -3)
    run = aquactl(node, "quota", "set", "uid-77", "--weight", "default", "--priority", "default")
    assert run.stdout == "applied: uid-77 has the default, revision 2\n"


def test_lowering_below_what_is_held_leaves_it(node: Node) -> None:
    """The holder keeps its lease and is told nothing; the operator is told what it means."""
    with aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client:
        tensor = torch.arange(MIB, dtype=torch.int32)
        handle = client.offload(tensor)
        mine = own_tenant(node)
        run = aquactl(node, "quota", "set", mine, "2MiB")
        assert run.returncode == 0
        assert run.stdout.startswith(f"deferred: {mine} has 2 MiB, revision 1; it is over")
        assert "over: nothing is granted until it gives back" in run.stdout
        assert handle.tier == "peer"
        assert torch.equal(handle.fetch(), tensor)
        assert "over: nothing" in aquactl(node, "quota", "get").stdout


def test_revisions_tell_who_was_first(node: Node) -> None:
    """Stale and conflicting settings change nothing, exit 1, and say what is in force."""
    for words, status, says in (
        (("64MiB", "--revision", "5"), 0, "applied: uid-77 has 64 MiB, revision 5"),
        (("64MiB", "--revision", "5"), 0, "applied: uid-77 has 64 MiB, revision 5"),
        (("32MiB", "--revision", "5"), 1, "conflict: that revision is in force otherwise"),
        (("32MiB", "--revision", "4"), 1, "stale: a later revision is in force"),
        (("32MiB",), 0, "applied: uid-77 has 32 MiB, revision 6"),
    ):
        run = aquactl(node, "quota", "set", "uid-77", *words)
        assert run.returncode == status, run.stderr
        assert says in (run.stderr if status else run.stdout)
    (shown,) = quotas(node, "uid-77")
    assert (shown["nbytes"], shown["revision"]) == (32 * MIB, 6)


def test_a_dry_run_changes_nothing(node: Node) -> None:
    """It says what would be, and what is."""
    run = aquactl(node, "quota", "set", "uid-77", "1GiB", "--dry-run")
    assert (run.returncode, run.stdout) == (
        0,
        "dry run: would set uid-77 to 1GiB. uid-77 is not there\n",
    )
    assert not state_file(node).exists()
    run = aquactl(node, "quota", "get", "uid-77")
    assert run.returncode == 1
    assert "no quota set" in run.stderr


@pytest.mark.parametrize("quota", ["much", "1.5GiB", "", "999TiB"])
def test_what_is_no_size_is_a_wrong_call(node: Node, quota: str) -> None:
    """Exit status 2, with what may be given."""
    run = aquactl(node, "quota", "set", "uid-77", quota)
    assert run.returncode == 2
    assert "or default" in run.stderr


def test_a_corrupt_file_is_refused_at_start(node: Node) -> None:
    """The daemon does not start with quotas that nobody set; after the remedy it does."""
    aquactl(node, "quota", "set", "uid-77", "1GiB")
    path = state_file(node)
    path.write_text(path.read_text()[:-20])
    node.kill_daemon()
    run = subprocess.run(
        [sys.executable, "-m", "aqua_daemon", *node.flags],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.returncode == 1
    assert f"mv {path} {path}.bad" in run.stderr
    assert run.stdout == ""
    path.rename(f"{path}.bad")
    node.start_daemon()
    assert aquactl(node, "quota", "get", "uid-77").returncode == 1
