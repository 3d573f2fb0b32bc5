"""A whole node as real processes: daemon, keeper and owners, for tests that kill them.

    with running_node(gpus=4) as node:
        client = aqua_client.connect(socket=node.socket)
        node.kill_daemon()
        node.restart_daemon()

Covers starting, signalling, finding and ending them, and fails when one is left behind. Does not
cover what they should do: that is what the tests say.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

REPOSITORY = Path(__file__).parents[1]
PROGRAM = (sys.executable, "-m", "aqua_daemon")
MIB = 2**20
READY_SECONDS = 20.0  # two cores that others use too; a start takes well under a second alone
END_SECONDS = 10.0


def wait_until(condition: Callable[[], object], *, seconds: float = 10.0, what: str = "") -> None:
    """Return as soon as *condition* holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or condition}")
        time.sleep(0.01)


def environment(**more: str) -> dict[str, str]:
    """What child processes run under: this checkout, and no setting of the caller's for AQUA or gRPC."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("AQUA_", "GRPC_"))
    }
    path = f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'protos'}"
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more}


# Settings of which the release before this one knows nothing.
STEADY: Mapping[str, str | float | bool] = {
    "settle_seconds": 0,
    "newcomer_seconds": 0,
    "ramp_seconds": 0,
    "rebalance_seconds": 0,
    "rest_seconds": 0,
}


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose paths fit into an AF_UNIX address; it goes with the block."""
    with tempfile.TemporaryDirectory(prefix="aqua-", dir="/tmp") as name:
        yield Path(name)


@contextmanager
def running_node(
    directory: Path | None = None,
    *,
    gpus: int = 4,
    gpu_bytes: int = 64 * MIB,
    variables: Mapping[str, str] | None = None,
    program: Sequence[str] = PROGRAM,
    is_steady: bool = True,
    **flags: str | float | bool,
) -> Iterator[Node]:
    """A ready node.

    *flags* go to the daemon (`lend_to_own_gpu=True`), *variables* into its environment; *program*
    is run in its place, with its arguments. *is_steady*: nothing moves by the daemon's own choice,
    and what becomes free is lent at once.
    """
    with short_directory() as made:
        node = Node(
            made if directory is None else directory,
            gpus=gpus,
            gpu_bytes=gpu_bytes,
            variables=variables or {},
            program=program,
            flags={**(STEADY if is_steady else {}), **flags},
        )
        try:
            node.start_daemon()
            yield node
        finally:
            node.end()


class Node:
    """One daemon with its keeper and whatever `load` started."""

    def __init__(
        self,
        directory: Path,
        *,
        gpus: int,
        gpu_bytes: int,
        variables: Mapping[str, str],
        program: Sequence[str],
        flags: Mapping[str, str | float | bool],
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self._variables = variables
        self._program = program
        self.socket = str(directory / "aqua.sock")
        self.keeper_socket = f"{self.socket}.keeper-shm"
        self.metrics_url = ""
        self._log = directory / "daemon.log"
        shm = ["--shm-gpus", str(gpus), "--shm-gpu-bytes", str(gpu_bytes)]
        self._flags = shm if gpus else []  # without: the CUDA GPUs of the node's environment
        usual: dict[str, str | float | bool] = {
            "metrics": "127.0.0.1:0",
            "state_dir": str(directory / "state"),
        }
        self._flags += ["--socket", self.socket, *flag_words({**usual, **flags})]
        self._daemon: subprocess.Popen[str] | None = None
        self._owners: list[subprocess.Popen[str]] = []

    @property
    def daemon(self) -> subprocess.Popen[str]:
        """The daemon's process, also when it has ended."""
        assert self._daemon is not None, "the daemon was never started"
        return self._daemon

    @property
    def pid(self) -> int:
        return self.daemon.pid

    def become(self, variables: Mapping[str, str]) -> None:
        """Have what is started from now on run under these *variables*."""
        self._variables = variables

    def start_daemon(self) -> None:
        """Start the daemon and wait until it says that it is ready."""
        self._daemon = self._start([*self._program, *self._flags], self._log)
        ready = self._read_line(self._daemon)
        assert ready["event"] == "ready", ready
        self.metrics_url = str(ready["metrics"])

    def kill_daemon(self) -> None:
        """SIGKILL: it has no chance to say anything to anybody."""
        self._end_daemon(signal.SIGKILL)

    def terminate_daemon(self) -> int:
        """SIGTERM: it detaches. Returns its exit status."""
        self._end_daemon(signal.SIGTERM)
        return int(self.daemon.returncode)

    def restart_daemon(self, *, graceful: bool = True) -> None:
        """A new daemon over the same keeper; the old one ends first, however it is asked to."""
        if self.daemon.poll() is None:
            self._end_daemon(signal.SIGTERM if graceful else signal.SIGKILL)
        self.start_daemon()

    def stop_daemon(self) -> None:
        """SIGSTOP: it hangs, all of it, when this returns."""
        stop_process(self.pid)

    def continue_daemon(self) -> None:
        self.daemon.send_signal(signal.SIGCONT)

    @property
    def flags(self) -> list[str]:
        """What the daemon was started with, for starting another one like it."""
        return list(self._flags)

    def keeper_pid(self) -> int:
        """The keeper of the shm GPUs, found among all processes by its arguments."""
        found = self.keeper_pids()
        assert len(found) == 1, f"one keeper expected: {self._processes()}"
        return found[0]

    def keeper_pids(self) -> list[int]:
        """Every keeper of this node."""
        return [pid for pid, words in self._processes() if {"aqua_daemon", "keeper"} <= {*words}]

    def kill_keeper(self) -> None:
        pid = self.keeper_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not _runs(pid), what=f"the keeper, pid {pid}, ends")

    def load(self, gpu: str, nbytes: int, *command: str) -> subprocess.Popen[str]:
        """An owner's process on *gpu*, registered with the keeper when this returns."""
        owner = self.start_load(gpu, nbytes, *command)
        self.await_loaded(owner)
        return owner

    def start_load(self, gpu: str, nbytes: int, *command: str) -> subprocess.Popen[str]:
        """The same, returning at once: it takes what fits, and the rest as it becomes free."""
        words = [*PROGRAM, "load", "--gpu", gpu, "--bytes", str(nbytes), "--keeper-socket"]
        words += [self.keeper_socket, *(("--", *command) if command else ())]
        owner = self._start(words, self.directory / "owners.log")
        self._owners.append(owner)
        return owner

    def await_loaded(self, owner: subprocess.Popen[str]) -> None:
        """Return when an owner has all of its bytes."""
        loaded = self._read_line(owner)
        assert loaded["event"] == "loaded", loaded

    def end_owner(self, owner: subprocess.Popen[str]) -> None:
        """Kill an owner, if it is still there, and forget it."""
        owner.kill()
        owner.wait(END_SECONDS)
        if owner.stdout:
            owner.stdout.close()
        self.forget(owner)

    def forget(self, owner: subprocess.Popen[str]) -> None:
        """An owner that has ended and whose pipe is closed."""
        self._owners.remove(owner)

    def scrape(self) -> dict[str, float]:
        """The daemon's metrics now, by `name{labels}` as the exposition writes it."""
        with urllib.request.urlopen(self.metrics_url, timeout=10) as reply:  # noqa: S310 - loopback
            text = reply.read().decode()
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def log(self) -> str:
        """What all daemons of this node have logged."""
        return self._log.read_text() if self._log.exists() else ""

    def end(self) -> None:
        """Kill what belongs to this node, and fail if anything of it is left."""
        for process in [*self._owners, *([self._daemon] if self._daemon else [])]:
            process.kill()
            process.wait(END_SECONDS)
            if process.stdout:
                process.stdout.close()
        # Again and again: one that was being started is not seen at once.
        wait_until(lambda: not self._kill_all(), what=f"no process left: {self._processes()}")

    def _start(self, words: list[str], log: Path) -> subprocess.Popen[str]:
        with log.open("a") as errors:
            return subprocess.Popen(
                words,
                cwd=self.directory,
                env=environment(**self._variables),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def _read_line(self, process: subprocess.Popen[str]) -> dict[str, object]:
        assert process.stdout is not None
        line = read_line(process.stdout, seconds=READY_SECONDS)
        if not line:
            process.kill()
            process.wait(END_SECONDS)
            raise AssertionError(f"{process.args!r} was not ready:\n{self._logs()}")
        found: dict[str, object] = json.loads(line)
        return found

    def _logs(self) -> str:
        return "\n".join(path.read_text()[-8000:] for path in self.directory.glob("*.log"))

    def _end_daemon(self, how: signal.Signals) -> None:
        process = self.daemon
        process.send_signal(how)
        process.wait(END_SECONDS)
        if process.stdout:
            process.stdout.close()

    def _kill_all(self) -> bool:
        """Whether there was anybody to kill."""
        found = self._processes()
        for pid, _ in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(found)

    def _processes(self) -> list[tuple[int, list[str]]]:
        """Every living process whose arguments name this node's directory."""
        mine = str(self.directory)
        return [(pid, words) for pid, words in _all_processes() if any(mine in w for w in words)]


def stop_process(pid: int) -> None:
    """SIGSTOP a process and wait until it has stopped: on a busy machine that takes a moment."""
    os.kill(pid, signal.SIGSTOP)
    stat = Path(f"/proc/{pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(") ")[2][0] == "T", what=f"{pid} has stopped")


def flag_words(flags: Mapping[str, str | float | bool]) -> list[str]:
    """`{"state_dir": "x", "lend_to_own_gpu": True}` as command-line words."""
    words = []
    for name, value in flags.items():
        if value is not False:
            words.append(f"--{name.replace('_', '-')}")
            words += [] if value is True else [str(value)]
    return words


def read_line(stream: IO[str], *, seconds: float) -> str:
    """The next line of an unbuffered pipe; empty at its end or when it does not come in time."""
    deadline, line = time.monotonic() + seconds, b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        byte = os.read(stream.fileno(), 1) if ready else b""
        if not byte:
            return ""
        line += byte
    return line.decode()


def _all_processes() -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                yield int(entry.name), words[:-1]  # a dead one not yet waited for has none


def _runs(pid: int) -> bool:
    return any(other == pid and words for other, words in _all_processes())
