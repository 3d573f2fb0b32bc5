"""Faults chosen by chance, done to a node and its clients while they work.

Covers who is killed, stopped, continued and started. Does not cover what must hold all the same:
that is `test_chaos`, and the clients themselves (`parker`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from tests.nodes import MIB, Node, environment, read_line, wait_until

GPUS = 4
GPU_BYTES = 64 * MIB
CLIENTS = 3
ANSWER_SECONDS = 90.0
LONGEST_STOP_SECONDS = 3.5  # past a revoke's deadline
RECLAIM = """
import sys, aqua_client
with aqua_client.producer(sys.argv[1]) as gpu:
    gpu.reclaim(16 * 2**20, deadline=1.0)
    gpu.lend(64 * 2**20)
    sys.stdin.read()
"""


class Client:
    """A parker's process."""

    def __init__(self, node: Node, seed: int, *words: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.end_to_end.parker", str(seed), *words],
            env=environment(
                AQUA_SOCKET=node.socket,
                AQUA_HOME_GPU="SHM-0",
                AQUA_HOST_LIMIT="512MiB",
                **variables,
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def say(self) -> None:
        """The next line, whatever it is."""
        assert self.process.stdin is not None
        self.process.stdin.write("next\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, object]:
        assert self.process.stdout is not None
        line = read_line(self.process.stdout, seconds=ANSWER_SECONDS)
        assert line, f"a client has ended, or hangs: {self.process.poll()}"
        found: dict[str, object] = json.loads(line)
        return found

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


class Chaos:
    """A node, its clients, and what is done to them."""

    def __init__(self, node: Node, seed: int, *, keeper_dies: bool) -> None:
        self.node = node
        self.told: list[str] = []
        self.keeper_died = False
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._keeper_pid = node.keeper_pid()
        self._stopped: dict[int, float] = {}  # pids, and when they go on
        self._owners: list[subprocess.Popen[str]] = []
        self._clients = [self._new_client() for _ in range(CLIENTS)]
        self._faults: dict[Callable[[], None], float] = {
            self.kill_daemon: 2,
            self.restart_daemon: 1,
            self.stop_daemon: 1,
            self.stop_keeper: 1,
            self.kill_client: 2,
            self.stop_client: 2,
            self.start_owner: 2,
            self.start_producer: 1,
            self.kill_owner: 2,
            self.kill_keeper: 0.5 if keeper_dies else 0,
        }
        for client in self._clients:
            client.answer()

    def rage(self, seconds: float) -> None:
        """One fault after the other."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            (fault,) = self._random.choices([*self._faults], [*self._faults.values()])
            self.told.append(fault.__name__)
            fault()
            # What the clients do meanwhile is the point.
            threading.Event().wait(self._random.uniform(0.02, 0.6))
            self._continue(lambda due: due < time.monotonic())

    def kill_daemon(self) -> None:
        self.node.restart_daemon(graceful=False)

    def restart_daemon(self) -> None:
        self._continue(lambda _due: True)
        self.node.restart_daemon()

    def stop_daemon(self) -> None:
        self._stop(self.node.pid)

    def stop_keeper(self) -> None:
        self._stop(self._keeper_pid)

    def kill_keeper(self) -> None:
        self._continue(lambda _due: True)
        self.keeper_died = True
        self.node.kill_keeper()
        wait_until(self._finds_keeper, seconds=30, what="the daemon has started another keeper")

    def kill_client(self) -> None:
        number = self._random.randrange(CLIENTS)
        self._clients[number].end()
        self._clients[number] = self._new_client()
        self._clients[number].answer()

    def stop_client(self) -> None:
        self._stop(self._random.choice(self._clients).process.pid)

    def start_owner(self) -> None:
        gpu = f"SHM-{self._random.randrange(GPUS)}"
        self._owners.append(self.node.start_load(gpu, self._random.randint(4, 48) * MIB))

    def start_producer(self) -> None:
        gpu = f"SHM-{self._random.randrange(GPUS)}"
        command = ("env", f"AQUA_SOCKET={self.node.socket}", sys.executable, "-c", RECLAIM, gpu)
        self._owners.append(self.node.start_load(gpu, 4 * MIB, *command))

    def kill_owner(self) -> None:
        if self._owners:
            owner = self._owners.pop(self._random.randrange(len(self._owners)))
            owner.kill()
            owner.wait()

    def calm_down(self) -> list[dict[str, object]]:
        """No fault any more; what each client says after it has looked at everything."""
        self._continue(lambda _due: True)
        while self._owners:
            self.kill_owner()
        for client in self._clients:
            client.say()
        return [client.answer() for client in self._clients]

    def leave(self) -> None:
        """The clients end by themselves."""
        for client in self._clients:
            client.say()
        for client in self._clients:
            assert client.process.wait(ANSWER_SECONDS) == 0

    def end(self) -> None:
        for client in self._clients:
            client.end()

    def _new_client(self) -> Client:
        return Client(self.node, self._random.randrange(2**31))

    def _stop(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        self._stopped[pid] = time.monotonic() + self._random.uniform(0.1, LONGEST_STOP_SECONDS)

    def _continue(self, is_due: Callable[[float], bool]) -> None:
        for pid in [pid for pid, due in self._stopped.items() if is_due(due)]:
            del self._stopped[pid]
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _finds_keeper(self) -> bool:
        try:
            self._keeper_pid = self.node.keeper_pid()
        except AssertionError:
            return False
        return True
