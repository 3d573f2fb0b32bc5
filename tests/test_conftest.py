"""What every test runs under, shown on small suites of its own: limits, leaks, what did not run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.nodes import environment

SETTINGS = """
[pytest]
markers =
    limit(seconds): how long the test may take
    gpu: needs a CUDA device
    long: minutes of running
"""


def run(directory: Path, source: str, **variables: str) -> tuple[int, str]:
    """Run a suite of one file under tests/conftest.py; exit status and output."""
    directory.mkdir(exist_ok=True)
    (directory / "pytest.ini").write_text(SETTINGS)
    (directory / "test_small.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-q"],
        cwd=directory,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_test_that_hangs_fails_at_its_limit_and_the_next_one_runs(tmp_path: Path) -> None:
    """The limit ends a wait on a lock; the report shows where it hung."""
    source = """
import threading, pytest

@pytest.mark.limit(0.2)
def test_hangs():
    threading.Event().wait()

def test_next():
    pass
"""
    status, output = run(tmp_path, source)
    assert status == 1
    assert "over its limit of 0.2 s" in output
    assert "1 failed, 1 passed" in output


def test_a_loop_that_swallows_the_first_alarm_is_stopped_by_the_next(tmp_path: Path) -> None:
    """An event loop logs what a callback raises and goes on; the test fails all the same."""
    source = """
import asyncio, time, pytest

@pytest.mark.limit(0.2)
def test_hangs():
    async def scenario():
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: time.sleep(0.5))
        await asyncio.Event().wait()
    asyncio.run(scenario())
"""
    status, output = run(tmp_path, source)
    assert status == 1
    assert "over its limit of 0.2 s" in output


MISSING = """
from tests.conftest import require_module, require_root, require_tool

def test_needs_a_tool():
    require_tool("no-such-tool")

def test_needs_a_module():
    require_module("no_such.module", "no-such-package")

def test_needs_root(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    require_root()
"""


def test_a_missing_tool_is_named_at_the_end(tmp_path: Path) -> None:
    """The suite passes and says what it did not check."""
    status, output = run(tmp_path, MISSING)
    assert status == 0
    assert "test_small.py::test_needs_a_tool: no-such-tool is missing" in output
    assert "test_small.py::test_needs_a_module: no-such-package is missing" in output
    assert "3 checks not run here, 0 of them GPU tests" in output


def test_a_missing_tool_fails_where_all_is_required(tmp_path: Path) -> None:
    """AQUA_REQUIRE_ALL=1 leaves nothing out in silence."""
    status, output = run(tmp_path, MISSING, AQUA_REQUIRE_ALL="1")
    assert status == 1
    assert "no-such-tool is missing, and AQUA_REQUIRE_ALL=1" in output
    assert "no-such-package is missing, and AQUA_REQUIRE_ALL=1" in output
    assert "root is missing, and AQUA_REQUIRE_ALL=1" in output


def test_a_descriptor_left_open_fails_an_end_to_end_test(tmp_path: Path) -> None:
    """The leak is named; tests elsewhere are not looked at."""
    source = """
import os, socket

def test_leaks():
    globals()["kept"] = socket.socketpair()
"""
    status, output = run(tmp_path / "end_to_end", source)
    assert status == 1
    assert "descriptors left open" in output
    assert "socket:" in output
    assert run(tmp_path / "elsewhere", source)[0] == 0


def test_long_tests_run_when_they_are_asked_for(tmp_path: Path) -> None:
    """They are deselected, not skipped: nobody forgot them."""
    source = """
import pytest

@pytest.mark.long
def test_takes_minutes():
    pass

def test_quick():
    pass
"""
    assert "1 passed, 1 deselected" in run(tmp_path, source)[1]
    assert "2 passed" in run(tmp_path, source, AQUA_LONG="1")[1]


def test_gpu_tests_are_marked_by_what_they_ask_for(tmp_path: Path) -> None:
    """A test that takes the device's fixture is a `gpu` test."""
    source = """
def test_on_gpu(cuda_device):
    pass

def test_elsewhere(request):
    assert request.node.get_closest_marker("gpu") is None
"""
    (tmp_path / "torch.py").write_text(
        "class cuda:\n    is_available = staticmethod(lambda: False)\n"
    )
    status, output = run(tmp_path, source)
    assert status == 0
    assert "1 checks not run here, 1 of them GPU tests" in output
