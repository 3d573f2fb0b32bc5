"""Starts keepers that outlive the daemon, and tells when a keeper's process has ended.

Covers a detached start, and watching the process at the other end of a connection, whoever started
it. Does not cover talking to it (`keeper_link`). A keeper that already serves the socket is adopted
by connecting to it: one is started only when nobody answers, and should two be started at once, the
lock beside the socket lets one live.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# One that a daemon started ends this long after its last daemon, owner and holder: a daemon that is
# upgraded or restarted by hand finds it, and a node that is gone for good leaves nothing behind.
LINGER_SECONDS = 60.0
# One that ends sooner than this was not well; the next is waited with, each time twice as long.
SOON_SECONDS = 10.0
SHORTEST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0
LIST_COMMAND = (sys.executable, "-m", "aqua_daemon", "keeper", "--list")
LIST_SECONDS = 20.0  # a driver that nothing keeps awake takes a second or two for each GPU
_SO_PEERPIDFD = 77  # Linux 6.5; Python has no name for it
_CREDENTIALS = struct.Struct("3i")

_log = logging.getLogger("aqua.keepers")


def shm_keeper_command(*, gpus: int, gpu_bytes: int, socket_path: Path) -> tuple[str, ...]:
    """How the keeper of the shm GPUs is started."""
    flags = {
        "--shm-gpus": gpus,
        "--shm-gpu-bytes": gpu_bytes,
        "--socket": socket_path,
        "--linger": LINGER_SECONDS,
    }
    words = [str(word) for flag in flags.items() for word in flag]
    return (sys.executable, "-m", "aqua_daemon", "keeper", *words)


def cuda_keeper_command(*, gpu: str, handles: str, socket_path: Path) -> tuple[str, ...]:
    """How the keeper of one CUDA GPU is started."""
    flags = {
        "--gpu": gpu,
        "--handles": handles,
        "--socket": socket_path,
        "--linger": LINGER_SECONDS,
    }
    words = [str(word) for flag in flags.items() for word in flag]
    return (sys.executable, "-m", "aqua_daemon", "keeper", *words)


def listed_gpus() -> tuple[str, ...]:
    """The UUIDs of the node's CUDA GPUs, by a process of its own: NVML can hang.

    Raises:
        OSError: it could not be asked, did not answer in time, or there are none; says what to do.
    """
    remedy = "name them with --gpu, or serve stand-ins with --shm-gpus"
    pipe = subprocess.PIPE
    with subprocess.Popen(LIST_COMMAND, stdout=pipe, stderr=pipe) as listing:
        try:
            listed, words = listing.communicate(timeout=LIST_SECONDS)
        except subprocess.TimeoutExpired:
            listing.kill()
            listing.returncode = -1  # not waited for: it may hang where no signal gets through
            msg = f"NVML did not name the GPUs within {LIST_SECONDS:g} s: {remedy}"
            raise OSError(msg) from None
    if listing.returncode:
        reason = words.decode(errors="replace").strip().rpartition("\n")[2]
        msg = f"the GPUs can't be listed ({reason}): {remedy}"
        raise OSError(msg)
    uuids = tuple(str(gpu["uuid"]) for gpu in json.loads(listed)["gpus"])
    if not uuids:
        msg = f"NVML shows no GPU here: {remedy}"
        raise OSError(msg)
    return uuids


class KeeperProcess:
    """The process that this daemon starts where no keeper answers."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log_path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Its output goes to *log_path*, or to this process's stderr."""
        self._command = tuple(command)
        self._log_path = log_path
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._wait_seconds = 0.0  # after the next early end
        self._not_before = -math.inf

    def ensure_started(self) -> None:
        """Start it, unless one still runs or has just ended early. Never raises, never waits."""
        if self._process is not None:
            status = self._process.poll()
            if status is None:
                return
            self._note_end(self._process.pid, status)
            self._process = None
        if self._clock() < self._not_before:
            return
        self._started_at = self._clock()
        try:
            self._process = self._started()
        except OSError as error:
            _log.warning("a keeper can't be started: %s", error)
            return
        _log.info("started a keeper, process %d", self._process.pid)

    def reap(self) -> None:
        """Let the kernel forget it, if it has ended."""
        if self._process is not None:
            self._process.poll()

    def leave(self) -> None:
        """Let it live on without us. May be called twice."""
        if self._process is not None and self._process.poll() is None:
            # Popen warns of a child that nobody waited for; this one is meant to outlive us.
            self._process.returncode = 0
        self._process = None

    def _note_end(self, pid: int, status: int) -> None:
        _log.warning("the keeper, process %d, ended with %d", pid, status)
        if self._clock() - self._started_at >= SOON_SECONDS:
            self._wait_seconds = 0.0
            return
        # The first early end may be anybody's `kill`: the next keeper starts at once.
        self._not_before = self._clock() + self._wait_seconds
        longer = max(2 * self._wait_seconds, SHORTEST_WAIT_SECONDS)
        self._wait_seconds = min(longer, LONGEST_WAIT_SECONDS)

    def _started(self) -> subprocess.Popen[bytes]:
        with contextlib.ExitStack() as opened:
            log = None
            if self._log_path is not None:
                log = opened.enter_context(self._log_path.open("ab"))
            # A session of its own: what is typed at the daemon's terminal does not reach it. Its
            # stdout must not keep a pipe open that somebody reads the daemon's output from.
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log or sys.stderr.fileno(),
                stderr=log or sys.stderr.fileno(),
                start_new_session=True,
            )


class ProcessWatch:
    """Watches the process at the other end of a connection by its pidfd."""

    def __init__(self, connection: socket.socket, on_ended: Callable[[], None]) -> None:
        """*on_ended* is called once, from the loop.

        Raises:
            OSError: the process has ended already.
        """
        self._loop = asyncio.get_running_loop()
        self._on_ended = on_ended
        self.pid = _peer_pid(connection)
        self._pidfd = _peer_pidfd(connection)
        self.has_ended = False
        self._loop.add_reader(self._pidfd, self._ended)

    def close(self) -> None:
        """Stop watching. May be called twice."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _ended(self) -> None:
        self.close()
        self.has_ended = True
        self._on_ended()


def _peer_pidfd(connection: socket.socket) -> int:
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return os.pidfd_open(_peer_pid(connection))


def _peer_pid(connection: socket.socket) -> int:
    content = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, _uid, _gid = _CREDENTIALS.unpack(content)
    return int(pid)
