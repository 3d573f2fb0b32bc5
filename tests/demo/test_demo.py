"""The demo for real: a node of eight shm GPUs, a model, an owner, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aqua_client.demo.plan import QUICK

# Ten times what it takes on two cores that are busy with other things.
RUN_SECONDS = 170
pytestmark = pytest.mark.limit(RUN_SECONDS + 10)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the demo makes its folder; of a short name, because sockets' names are."""
    with tempfile.TemporaryDirectory(prefix="aq") as name:
        yield Path(name)


def started(folder: Path, *options: str) -> subprocess.Popen[str]:
    """The command, whose folder of its own is made in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "aqua_client.demo", "--quick", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )


def processes_of(folder: Path) -> list[str]:
    """The command lines of processes that were started with something in `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if str(folder) in words:
            found.append(words)
    return found


def test_the_demo_keeps_its_promises(folder: Path) -> None:
    """More conversations than the budget, on several GPUs, with revokes, and no byte changed."""
    demo = started(folder, "--json")
    out, told = demo.communicate(timeout=RUN_SECONDS)
    assert demo.returncode == 0, told
    summary = json.loads(out)
    assert summary["passed"]
    assert summary["faults"] == []
    assert summary["conversations"] == QUICK.conversations
    assert summary["tokens"] == QUICK.total_turns * QUICK.reply_tokens
    assert summary["outputs_equal"]
    assert summary["parked_bytes_equal"]
    assert 0 < summary["peak_resident_kv_bytes"] <= summary["kv_budget_bytes"]
    assert summary["all_kv_bytes"] > 2 * summary["kv_budget_bytes"]
    assert summary["parked_bytes"]["peer"] > summary["kv_budget_bytes"]
    assert sum(summary["fetched_bytes"].values()) > summary["kv_budget_bytes"]
    assert len(summary["lenders"]) > 1
    assert "SHM-0" not in summary["lenders"]  # the model server's own
    assert summary["revokes_served"] >= 1
    assert summary["evacuated_bytes"] > 0
    assert summary["taken_back"]["freed_bytes"] > 0
    assert summary["taken_back"]["lent_again_bytes"] > 0
    assert [one["requests"] for one in summary["rush"]] == 2 * [len(QUICK.rush.reply_tokens)]
    assert processes_of(folder) == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_leaves_nothing_behind(folder: Path, number: signal.Signals) -> None:
    """In the middle of the burst, with the owner's processes there: node, keeper, owner and folder all go."""
    demo = started(folder)
    assert demo.stdout is not None
    assert any("more itself now" in line for line in demo.stdout)
    assert processes_of(folder)
    demo.send_signal(number)
    _, told = demo.communicate(timeout=RUN_SECONDS)
    assert demo.returncode == 128 + number, told
    assert "stopped" in told
    assert processes_of(folder) == []
    assert list(folder.iterdir()) == []
