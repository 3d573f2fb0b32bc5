"""Real keepers, started and ended; a daemon's end of their socket is in `peers`.

    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        slab = daemon.allocate(tenant)
        tenant.map(slab.descriptor)

Does not cover what they should do: that is what the tests say.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.keeper.holders import ANSWER_SECONDS
from tests.keeper.peers import MIB, Peer
from tests.nodes import environment, short_directory, wait_until

GPU_BYTES = 64 * MIB


class Keeper:
    """One real keeper process."""

    def __init__(
        self,
        directory: Path,
        *words: str,
        gpus: int = 2,
        keeps: Sequence[str] = (),
        variables: dict[str, str] | None = None,
    ) -> None:
        """Of shm GPUs, unless *keeps* names something else in words of the command line."""
        self.socket = directory / "keeper.sock"
        self.log_path = directory / "keeper.log"
        kept = keeps or ("--shm-gpus", str(gpus), "--shm-gpu-bytes", str(GPU_BYTES))
        command = [sys.executable, "-m", "aqua_daemon", "keeper", *kept]
        command += ["--socket", str(self.socket), *words]
        with self.log_path.open("a") as log:
            self.process = subprocess.Popen(
                command, env=variables or environment(), stdout=log, stderr=log
            )
        self.pid = self.process.pid

    def wait_until_ready(self) -> None:
        wait_until(self._answers, seconds=ANSWER_SECONDS, what=f"ready: {self.log()}")

    @contextlib.contextmanager
    def peer(self) -> Iterator[Peer]:
        with contextlib.closing(Peer(self.socket)) as peer:
            yield peer

    @contextlib.contextmanager
    def daemon(self) -> Iterator[Peer]:
        with self.peer() as peer:
            peer.attach()
            yield peer

    def descriptors(self) -> int:
        """How many it has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def wait_for_descriptors(self, count: int) -> None:
        """Until it has so many open: it closes what it has sent a moment after we have read it."""
        wait_until(lambda: self.descriptors() == count, what=f"{count}, not {self.descriptors()}")

    def wait_for_end(self) -> int:
        return self.process.wait(ANSWER_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def log(self) -> str:
        return self.log_path.read_text()

    def end(self) -> None:
        self.process.kill()
        self.process.wait(ANSWER_SECONDS)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(self.socket))
            return True
        return False


@contextlib.contextmanager
def running_keeper(*words: str, gpus: int = 2) -> Iterator[Keeper]:
    """A keeper that answers; it is killed at the end of the block."""
    with short_directory() as directory:
        keeper = Keeper(directory, *words, gpus=gpus)
        try:
            keeper.wait_until_ready()
            yield keeper
        finally:
            keeper.end()
