"""The node that the demo runs on: a daemon and its keeper as processes, and their end.

Nothing here knows the daemon but its command line, its ready line and its sockets.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

READY_SECONDS = 60.0  # two slow cores that are busy with other things
END_SECONDS = 10.0

GPUS = 8
GPU_BYTES = 256 * 2**20

# A demo of a minute can't wait as a node does: 30 s until memory that was let go is lent, 10 s of
# quiet after a process has come.
SETTLE_SECONDS = 1.0
NEWCOMER_SECONDS = 1.0
SHORTENED = f"shortened here: settle {SETTLE_SECONDS:g} s (not 30), newcomers {NEWCOMER_SECONDS:g} s (not 10)"

# Becomes the daemon, which is told to end (SIGTERM) when the demo does, however that happens: who is
# killed can't clean up. Its keeper then holds nothing for anybody and ends a minute later.
TETHERED = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # stays over exec
if os.getppid() == int(sys.argv[1]):  # else the demo has ended already
    os.execv(sys.argv[2], sys.argv[2:])
"""


class NodeFailed(Exception):
    """The daemon did not come up; the message says what it wrote."""


def daemon_command(socket: str) -> list[str]:
    """What to start for a node of eight shm GPUs."""
    return [
        *(sys.executable, "-m", "aqua_daemon"),
        *("--shm-gpus", str(GPUS), "--shm-gpu-bytes", str(GPU_BYTES)),
        *("--socket", socket, "--metrics", "127.0.0.1:0"),
        *("--settle-seconds", str(SETTLE_SECONDS), "--newcomer-seconds", str(NEWCOMER_SECONDS)),
        *("--state-dir", f"{socket}.state"),  # an installed daemon's settings are not ours
    ]


class Node:
    """A daemon in a folder of its own. Starting it does not wait: `ready` does."""

    def __init__(self, command: Callable[[str], Sequence[str]] = daemon_command) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="aqua-demo-"))
        self._log = self._folder / "daemon.log"
        self.socket = str(self._folder / "aqua.sock")
        self.keeper_socket = f"{self.socket}.keeper-shm"
        self.metrics = ""
        self.started_at = time.monotonic()
        tether = [sys.executable, "-c", TETHERED, str(os.getpid())]
        with self._log.open("wb") as log:
            self._daemon = subprocess.Popen(  # its own session: Ctrl-C is for us to deal with
                [*tether, *command(self.socket)],
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ready(self) -> None:
        """Wait until the daemon serves.

        Raises:
            NodeFailed: it ended, or said nothing in time.
        """
        out = self._daemon.stdout
        line = b""
        if out is not None and select.select([out], [], [], READY_SECONDS)[0]:
            line = out.readline()
        try:
            self.metrics = metrics_address(line)
        except ValueError as error:
            self._daemon.poll()
            raise NodeFailed(
                f"the daemon did not come up (exit status {self._daemon.returncode}, ready line "
                f"{line!r}); it wrote:\n{self._log.read_text(errors='replace')[-2000:]}"
            ) from error

    def close(self) -> None:
        """End the daemon, then its keeper, which outlives it. Idempotent."""
        if self._daemon.poll() is None:
            self._daemon.terminate()
            try:
                self._daemon.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
        if self._daemon.stdout is not None:
            self._daemon.stdout.close()
        _end_listener(self.keeper_socket)
        shutil.rmtree(self._folder, ignore_errors=True)


def metrics_address(ready_line: bytes) -> str:
    """Where the daemon that wrote this line serves its metrics.

    Raises:
        ValueError: it is no ready line.
    """
    ready = json.loads(ready_line)
    if not isinstance(ready, dict) or ready.get("event") != "ready":
        raise ValueError(f"not a ready line: {ready_line!r}")
    return str(ready["metrics"]).removeprefix("http://").removesuffix("/metrics").rstrip("/")


def _end_listener(path: str) -> None:
    """End the process that listens on a socket, as the kernel names it."""
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(END_SECONDS)
            peer.connect(path)
            peer_size = struct.calcsize("3i")
            credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, peer_size)
            pid, _, _ = struct.unpack("3i", credentials)
            process = os.pidfd_open(pid)
    except OSError:
        return  # it has ended already
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], END_SECONDS)[0]:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], END_SECONDS)
    except ProcessLookupError:
        pass
    finally:
        os.close(process)
