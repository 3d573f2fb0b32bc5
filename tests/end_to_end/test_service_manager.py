"""The daemon under a service manager: what it says, when, and under the units' restrictions."""

from __future__ import annotations

import ctypes
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.borrower import borrowing
from tests.nodes import MIB, REPOSITORY, running_node, short_directory

# prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN): what MemoryDenyWriteExecute=yes means, and children
# inherit it.
DENY_WRITE_EXECUTE = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, "-m", "aqua_daemon", *sys.argv[1:]])
"""


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """A datagram socket as systemd has it."""
    with (
        short_directory() as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening,
    ):
        listening.bind(str(directory / "notify"))
        listening.settimeout(20)
        yield listening


def hears(manager: socket.socket, expected: bytes, *, but: bytes = b"WATCHDOG=1") -> None:
    """The next word that is not *but* is *expected*."""
    while (word := manager.recv(100)) == but:
        pass
    assert word == expected


def test_the_manager_hears_ready_and_stopping(manager: socket.socket) -> None:
    """READY=1 once clients are served, STOPPING=1 when it begins to stop, nothing else."""
    variables = {"NOTIFY_SOCKET": manager.getsockname()}
    with running_node(gpus=1, variables=variables) as node:
        hears(manager, b"READY=1")
        assert node.terminate_daemon() == 0
        hears(manager, b"STOPPING=1")


def test_a_hung_daemon_stops_pinging(manager: socket.socket) -> None:
    """The watchdog is pinged while the loop turns, not while it does not, and again when it does."""
    manager_address = manager.getsockname()
    variables = {"NOTIFY_SOCKET": manager_address, "WATCHDOG_USEC": "300000"}
    with running_node(gpus=1, variables=variables) as node:
        hears(manager, b"READY=1")
        for _ in range(4):
            assert manager.recv(100) == b"WATCHDOG=1"
        node.stop_daemon()
        with pytest.raises(TimeoutError):
            drain(manager, silence_seconds=1.0)
        node.continue_daemon()
        manager.settimeout(20)
        assert manager.recv(100) == b"WATCHDOG=1"


def drain(manager: socket.socket, *, silence_seconds: float) -> None:
    """Read until nothing has come for so long (TimeoutError); a few may still be under way."""
    manager.settimeout(silence_seconds)
    for _ in range(10):
        assert manager.recv(100) == b"WATCHDOG=1"


def test_a_watchdog_of_another_process_is_not_pinged(manager: socket.socket) -> None:
    """WATCHDOG_PID names whom it is meant for; this daemon's parent, say."""
    variables = {
        "NOTIFY_SOCKET": manager.getsockname(),
        "WATCHDOG_USEC": "300000",
        "WATCHDOG_PID": "1",
    }
    with running_node(gpus=1, variables=variables) as node:
        assert manager.recv(100) == b"READY=1"
        node.terminate_daemon()
        assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.skipif(
    ctypes.CDLL(None).prctl(66, 0, 0, 0, 0) < 0,  # PR_GET_MDWE
    reason="not run here: PR_SET_MDWE (Linux 6.3) is missing",
)
def test_daemon_and_keeper_work_where_nothing_may_become_executable() -> None:
    """The units say MemoryDenyWriteExecute=yes: lending and giving back work under it."""
    command = (sys.executable, "-c", DENY_WRITE_EXECUTE)
    assert "MemoryDenyWriteExecute=yes" in (REPOSITORY / "deploy/aqua-daemon.service").read_text()
    with running_node(gpus=2, program=command) as node, borrowing(node) as borrower:
        borrower.give_back(borrower.borrow(4 * MIB))
        for pid in (node.pid, node.keeper_pid()):
            maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
            assert [line for line in maps if "wx" in line.split()[1]] == []
