"""Whole nodes under faults at every step: every promise holds, and every fault really happens."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation.__main__ import Summary, main, run_seeds

# What a reader must be able to rely on having happened. A simulation that does nothing fails.
_FAULTS = (
    "allocations failed",
    "claims of others' leases",
    "daemon restarts",
    "deaths",
    "deaths with a child that maps slabs",
    "forks",
    "goodbyes",
    "impostors",
    "keeper losses",
    "keepers detached",
    "owners grew",
    "owners shrank",
    "presence connections broken",
    "replies lost",
    "requests lost",
    "requests repeated late",
    "revokes left unanswered",
    "stops",
)
_OUTCOMES = (
    "acquires given up",
    "acquires repeated",
    "drains",
    "drains told ahead",
    "exchanges",
    "exchanges offered",
    "fetches from host",
    "fetches from peers",
    "frees ordered",
    "grants",
    "items evacuated",
    "items lost with their keeper",
    "leases lost",
    "leases told ended",
    "leases told lost",
    "offers",
    "offloads to host",
    "offloads to peers",
    "quarantines",
    "quarantines healed",
    "raised InsufficientHostRoom",
    "raised InsufficientMemory",
    "raised NotPermitted",
    "raised Measuring",
    "raised QuotaExceeded",
    "raised Restarting",
    "raised SessionSuspect",
    "raised StaleRequest",
    "raised UnknownSession",
    "links measured",
    "links not measured",
    "reclaims answered",
    "reclaims answered in part",
    "releases",
    "quiets",
    "quiets died",
    "quiets hung up",
    "quiets left",
    "quiets lifted",
    "quiets that take back",
    "revokes hastened",
    "revokes of unknown leases",
    "revokes: dead",
    "revokes: drain",
    "revokes: lapsed",
    "revokes: owner",
    "revokes: reclaim",
    "revokes: reserve",
    "revokes: unclaimed",
    "sessions forgotten",
    "sessions re-attached",
    "slabs freed",
    "slabs freed on quiet GPUs",
    "undrains",
)


def _must_have_happened(counts: Counter[str]) -> None:
    missing = [what for what in (*_FAULTS, *_OUTCOMES) if not counts[what]]
    assert not missing, f"these never happened: {missing}"


def _must_hold(summary: Summary) -> None:
    replays = [
        f"python -m tests.simulation --seed {seed} --steps {summary.steps}"
        for seed in summary.failures
    ]
    assert not replays, "run again: " + "; ".join(replays)


@pytest.mark.limit(180)
def test_two_hundred_nodes_keep_every_promise() -> None:
    """200 seeds x 500 steps: no promise is broken, and every kind of fault and outcome occurred."""
    summary = run_seeds(range(200), steps=500)
    _must_hold(summary)
    _must_have_happened(summary.counts)


@pytest.mark.long
@pytest.mark.limit(900)
def test_two_thousand_nodes_keep_every_promise() -> None:
    """2,000 seeds x 500 steps, for `make check-long`."""
    _must_hold(run_seeds(range(2_000), steps=500, jobs=2))


def test_a_node_without_steps_is_no_success_by_itself() -> None:
    """Doing nothing breaks nothing, and is seen to have done nothing."""
    summary = run_seeds(range(3), steps=0)
    _must_hold(summary)
    with pytest.raises(AssertionError, match="never happened"):
        _must_have_happened(summary.counts)


def test_the_command_says_what_happened_and_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    """A reader sees seeds, steps, events, seconds, failures and counts."""
    assert main(["--seeds", "3", "--steps", "50"]) == 0
    told = capsys.readouterr().out
    assert "3 seeds x 50 steps" in told
    assert "0 failures" in told
    assert "slabs ordered" in told


def test_the_record_of_a_run_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    """`--json` writes what a later reader compares: date, size, seconds, failures, events."""
    path = tmp_path / "deeper" / "record.json"
    assert main(["--seeds", "2", "--steps", "20", "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    assert (record["seeds"], record["steps"], record["failures"]) == (2, 20, 0)
    assert record["events"] == record["counts"]["events"] > 0
    assert {"date", "seconds", "python", "cores"} <= record.keys()


def test_a_failing_seed_is_told_with_its_story_and_the_command_that_repeats_it() -> None:
    """Exit status 1, the last lines of the story, and exactly the command to type."""
    program = (
        "import sys\n"
        "from tests.simulation import __main__ as command, broken_brokers, run\n"
        "def broken(seed, steps):\n"
        "    return run.simulate(seed, steps, broken_brokers.TakesThePidfdAsProof)\n"
        "command.simulate = broken\n"
        "sys.exit(command.main(['--seeds', '3', '--steps', '300']))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ".:protos"},
        capture_output=True,
        check=False,
        text=True,
    )
    assert ended.returncode == 1, ended.stderr
    assert "  again: python -m tests.simulation --seed 0 --steps 300\n" in ended.stdout
    assert "without a claim or proof" in ended.stdout
    assert ended.stdout.count("\n    ") >= 15
