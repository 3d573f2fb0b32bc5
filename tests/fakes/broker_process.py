"""The fake daemon as a process of its own, to be stopped and killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.fakes.broker_server import TERM_SECONDS, FakeDaemon
from tests.nodes import REPOSITORY, environment, read_line


@contextmanager
def running_fake(
    path: str, *, way: str, term_seconds: float = TERM_SECONDS
) -> Iterator[subprocess.Popen[str]]:
    """It serves at *path*, and is killed at the end of the block."""
    started = subprocess.Popen(
        [sys.executable, "-m", __name__, path, str(term_seconds), way],
        cwd=REPOSITORY,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdin is not None
    assert started.stdout is not None
    assert read_line(started.stdout, seconds=20.0) == "ready\n"
    yield started
    started.kill()
    started.wait(10.0)
    started.stdin.close()
    started.stdout.close()


def main() -> None:
    """Serve until killed; a line on standard output when ready."""
    path, term_seconds, way = sys.argv[1:]
    with FakeDaemon(path, term_seconds=float(term_seconds), way=way) as daemon:
        print("ready", flush=True)
        sys.stdin.read()
        daemon.die()


if __name__ == "__main__":
    main()
