"""Keepers' processes as the daemon sees them: started once, left alone, and watched to their end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aqua_daemon.adapters import keeper_processes
from aqua_daemon.adapters.keeper_processes import (
    KeeperProcess,
    ProcessWatch,
    listed_gpus,
    shm_keeper_command,
)
from tests.fakes.clock import FakeClock
from tests.keeper.keepers import running_keeper
from tests.nodes import wait_until

_PROGRAM = "import os, signal; print(os.getpid(), flush=True); signal.pause()"


@pytest.fixture
def log_path(tmp_path: Path) -> Iterator[Path]:
    """Where the started processes say their pids; each of them is killed at the end."""
    path = tmp_path / "keeper.log"
    yield path
    for pid in pids(path):
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def pids(log_path: Path) -> list[int]:
    return [int(line) for line in log_path.read_text().splitlines()]


def test_it_is_started_once_while_it_runs(log_path: Path) -> None:
    """Asking again starts nothing; after its end it starts the next."""
    process = KeeperProcess((sys.executable, "-c", _PROGRAM), log_path=log_path)
    process.ensure_started()
    process.ensure_started()
    wait_until(lambda: len(pids(log_path)) == 1, what="it says its pid")
    os.kill(pids(log_path)[0], signal.SIGKILL)

    def has_next() -> bool:
        process.ensure_started()
        return len(pids(log_path)) == 2

    wait_until(has_next, what="the next one says its pid")
    process.leave()
    process.leave()  # twice is once


def test_one_that_ends_at_once_is_started_less_and_less_often(tmp_path: Path) -> None:
    """The second at once, then after 0.5 s, 1 s, ... 30 s; one that has lived makes up for it."""
    clock, log_path = FakeClock(), tmp_path / "keeper.log"
    program = (sys.executable, "-c", "import os; print(os.getpid(), flush=True)")
    process = KeeperProcess(program, log_path=log_path, clock=clock)

    def starts_once_more(*, lived_seconds: float = 0.0) -> float:
        """How long it took until it was started again."""
        before = len(pids(log_path))
        wait_until(lambda: _has_ended(process), what="the one before ends")
        clock.now += lived_seconds
        began = clock.now
        process.ensure_started()
        while process._process is None:
            clock.now += 0.25
            process.ensure_started()
        waited = clock.now - began
        wait_until(lambda: len(pids(log_path)) > before, what="it says its pid")
        return waited

    process.ensure_started()
    wait_until(lambda: len(pids(log_path)) == 1, what="it says its pid")
    waits = [starts_once_more() for _ in range(9)]
    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert starts_once_more(lived_seconds=10.0) == 0.0
    process.leave()


def _has_ended(process: KeeperProcess) -> bool:
    started = process._process
    return started is None or started.poll() is not None


def test_it_is_detached(log_path: Path) -> None:
    """It has a session of its own, no input, and lives on when it is left."""
    process = KeeperProcess((sys.executable, "-c", _PROGRAM), log_path=log_path)
    process.ensure_started()
    wait_until(lambda: pids(log_path), what="it says its pid")
    pid = pids(log_path)[0]
    process.leave()
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
    assert Path(f"/proc/{pid}/fd/1").readlink() == log_path
    os.kill(pid, 0)


def test_a_program_that_is_not_there_raises_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again by whoever wants a keeper; the log says why it failed."""
    process = KeeperProcess([str(tmp_path / "missing")], log_path=tmp_path / "keeper.log")
    process.ensure_started()
    process.ensure_started()
    process.reap()
    process.leave()
    assert "can't be started" in caplog.text


def test_the_command_names_all_that_a_keeper_needs(tmp_path: Path) -> None:
    """It lingers: a node that is gone for good leaves no process behind."""
    path = tmp_path / "keeper.sock"
    words = shm_keeper_command(gpus=8, gpu_bytes=256, socket_path=path)
    assert words[1:] == (
        *("-m", "aqua_daemon", "keeper", "--shm-gpus", "8", "--shm-gpu-bytes", "256"),
        *("--socket", str(path), "--linger", "60.0"),
    )


def test_the_end_of_the_process_behind_a_socket_is_told() -> None:
    """Once, whoever started it; the pid is that of who listens."""

    async def story() -> None:
        with running_keeper() as keeper, socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(keeper.socket))
            ended = asyncio.Event()
            watch = ProcessWatch(connection, ended.set)
            assert watch.pid == keeper.pid
            assert not ended.is_set()
            keeper.signal(signal.SIGKILL)
            async with asyncio.timeout(20):
                await ended.wait()
            assert watch.has_ended
            watch.close()
            watch.close()  # twice is once

    asyncio.run(story())


def test_a_listing_that_no_signal_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver may hold even a process that is killed: whoever starts the daemon hears of it in time."""
    held: list[subprocess.Popen[bytes]] = []

    def hold(process: subprocess.Popen[bytes]) -> None:
        held.append(process)

    monkeypatch.setattr(keeper_processes, "LIST_COMMAND", ("sleep", "20"))
    monkeypatch.setattr(keeper_processes, "LIST_SECONDS", 0.05)
    monkeypatch.setattr(subprocess.Popen, "kill", hold)
    began = time.monotonic()
    try:
        with pytest.raises(OSError, match=r"did not name the GPUs within 0\.05 s: name them with"):
            listed_gpus()
        assert time.monotonic() - began < 10
    finally:
        for process in held:
            os.kill(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)
