"""What happens to the node of the soak: clients are killed, owners come and go, daemons restart."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter

from tests.nodes import MIB, Node, environment, read_line, wait_until

GPUS = 6
GPU_BYTES = 64 * MIB
CLIENTS = 3
CLIENT_SECONDS = 90.0  # to start, or to compare everything: a busy machine


class Client:
    """A process of `client`."""

    def __init__(self, node: Node, seed: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.soak.client", str(seed)],
            env=environment(
                AQUA_SOCKET=node.socket, AQUA_HOME_GPU="SHM-0", AQUA_HOST_LIMIT="256MiB"
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """The next one that it says."""
        assert self.process.stdout is not None
        line = read_line(self.process.stdout, seconds=CLIENT_SECONDS)
        assert line, f"a client has ended, or hangs: {self.process.poll()}"
        return line

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go on\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


class Trouble:
    """The node's clients and owners, and what is done to them. The first client is left alone."""

    def __init__(self, node: Node, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._node = node
        self._chance = random.Random(seed)  # noqa: S311 - a story that repeats, no secret
        self._owner: subprocess.Popen[str] | None = None
        self._clients = [Client(node, number) for number in range(CLIENTS)]
        for client in self._clients:
            assert client.line() == "ready\n"

    @property
    def survivor(self) -> Client:
        """The one that lives through all of it."""
        return self._clients[0]

    def check(self) -> None:
        """Fail when a client has ended by itself: it saw something wrong."""
        for client in self._clients:
            assert client.process.poll() is None, f"a client has ended: {client.process.poll()}"
        assert self._node.daemon.poll() is None, "the daemon has ended"

    def change_owner(self) -> None:
        """The owner of one GPU goes, or one comes that wants most of a GPU."""
        if self._owner is not None:
            self._owner.kill()
            self._owner.wait()
            assert self._owner.stdout is not None
            self._owner.stdout.close()
            self._node.forget(self._owner)
            self._owner = None
            return
        self._owner = self._node.start_load(self._lender(), self._chance.randint(40, 60) * MIB)
        self.done["owners"] += 1

    def kill_client(self) -> None:
        """Another one begins at once; nobody waits for it."""
        number = self._chance.randrange(1, CLIENTS)
        self._clients[number].end()
        self.done["clients_killed"] += 1
        self._clients[number] = Client(self._node, self._chance.randrange(2**31))

    def restart_daemon(self) -> None:
        """Gracefully, or by SIGKILL."""
        self._node.restart_daemon(graceful=self._chance.random() < 0.5)
        self.done["daemon_restarts"] += 1

    def finish(self) -> dict[str, object]:
        """No trouble any more: the survivor compares everything and says what it did."""
        if self._owner is not None:
            self.change_owner()
        for client in self._clients[1:]:
            client.end()
        self.survivor.tell()
        report: dict[str, object] = json.loads(self.survivor.line())
        wait_until(self._is_quiet, seconds=60, what=f"all came back: {self._node.scrape()}")
        return report

    def end(self) -> None:
        for client in self._clients:
            client.end()

    def _lender(self) -> str:
        """One of the GPUs that lend, or any."""
        lent = [
            name.partition('gpu="')[2].partition('"')[0]
            for name, value in self._node.scrape().items()
            if name.startswith("aqua_pool_bytes") and 'state="lent"' in name and value
        ]
        return self._chance.choice(sorted(lent) or ["SHM-1"])

    def _is_quiet(self) -> bool:
        metrics = self._node.scrape()
        leases = sum(value for name, value in metrics.items() if name.startswith("aqua_leases{"))
        return not leases and metrics["aqua_sessions"] == 1
