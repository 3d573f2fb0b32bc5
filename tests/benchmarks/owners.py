"""The owner of a GPU as a process that is told line by line to lend and to take back.

    aqua-daemon load ... -- python -m tests.benchmarks.owners SOCKET GPU

`lend BYTES` and `reclaim BYTES SECONDS` are each answered by one line of JSON. Clocks are the
machine's monotonic one, so that processes may be compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from aqua_client.producing import producer
from aqua_client.settings import ClientSettings
from tests.nodes import PROGRAM, Node, environment, read_line

OWNER_SECONDS = 60.0
CALL_SECONDS = 10.0


class Owner:
    """The process, from outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, command: str) -> None:
        """Tell it, and do not wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()

    def answer(self) -> Mapping[str, float]:
        """What came of it, with the times of asking and of the answer."""
        assert self._process.stdout is not None
        line = read_line(self._process.stdout, seconds=OWNER_SECONDS)
        assert line, "the owner has ended, or hangs"
        found: Mapping[str, float] = json.loads(line)
        return found

    def ask(self, command: str) -> Mapping[str, float]:
        """Tell it, and wait."""
        self.start(command)
        return self.answer()


@contextmanager
def running_owner(node: Node, gpu: str) -> Iterator[Owner]:
    """A process that uses 2 MiB of *gpu*; killed at the end of the block."""
    load = [*PROGRAM, "load", "--gpu", gpu, "--bytes", "2MiB", "--keeper-socket"]
    command = [sys.executable, "-m", "tests.benchmarks.owners", node.socket, gpu]
    with subprocess.Popen(
        [*load, node.keeper_socket, "--", *command],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert "loaded" in read_line(process.stdout, seconds=OWNER_SECONDS)
            yield Owner(process)
        finally:
            process.kill()


def main() -> None:
    socket, gpu = sys.argv[1:]
    settings = ClientSettings(
        socket_path=socket, connect_seconds=CALL_SECONDS, call_seconds=CALL_SECONDS
    )
    with producer(gpu, settings=settings) as mine:
        for line in sys.stdin:
            start, freed_bytes = time.monotonic(), 0
            match line.split():
                case ["lend", nbytes]:
                    mine.lend(int(nbytes))
                case ["reclaim", nbytes, seconds]:
                    freed_bytes = mine.reclaim(int(nbytes), deadline=float(seconds)).freed_bytes
                case words:
                    msg = f"no such command: {words}"
                    raise ValueError(msg)
            said = {"asked_at": start, "answered_at": time.monotonic(), "freed_bytes": freed_bytes}
            print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
