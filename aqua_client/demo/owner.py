"""The owner of a GPU whose load rises and falls: a process of its own, started on that GPU.

`aqua-daemon load` registers this process's pid and bytes with the keeper and then becomes it. What
it uses in a burst a child of it uses, `aqua-daemon load` again, which is there from the start: a
process that comes anew would be left alone, and that is another story. Each line of its input is
a step, each step answered by lines of JSON; it ends with its input.

    burst    take back all that is lent of the GPU, and use it
    quiet    use as little as before, and lend again
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace

import aqua_client
from aqua_client.producing import Producer
from aqua_client.settings import ClientSettings

QUIET_BYTES = 2**20  # of the child


class Memory:
    """What the child uses."""

    def __init__(self, gpu: str, keeper_socket: str) -> None:
        """Return when it is registered."""
        self._child = subprocess.Popen(
            [
                *(sys.executable, "-m", "aqua_daemon", "load", "--follow"),
                *("--gpu", gpu, "--bytes", str(QUIET_BYTES), "--keeper-socket", keeper_socket),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._hear()

    def use(self, nbytes: int) -> None:
        """Use so many bytes, and return when it has them."""
        if self._child.stdin is not None:
            self._child.stdin.write(f"{nbytes}\n")
            self._child.stdin.flush()
        self._hear()

    def close(self) -> None:
        """End the child. Idempotent."""
        self._child.kill()
        self._child.communicate()

    def _hear(self) -> None:
        line = self._child.stdout.readline() if self._child.stdout is not None else ""
        if not line:
            raise SystemExit("the process that uses the GPU has ended")


def main() -> int:
    """Do what the input says."""
    arguments = _arguments()
    settings = replace(ClientSettings.from_environment(), socket_path=arguments.socket)
    with ExitStack() as undo:
        memory = Memory(arguments.gpu, arguments.keeper_socket)
        undo.callback(memory.close)
        mine = undo.enter_context(aqua_client.producer(arguments.gpu, settings=settings))
        offered = mine.lend(arguments.lend)
        _say("lends", offered_bytes=offered.offered_bytes)
        for line in sys.stdin:
            if line.strip() == "burst":
                _take_back(mine, memory, arguments)
            else:
                memory.use(QUIET_BYTES)
                offered = mine.lend(arguments.lend)
                _say("lends again", offered_bytes=offered.offered_bytes)
    return 0


def _take_back(mine: Producer, memory: Memory, arguments: argparse.Namespace) -> None:
    lent_bytes = mine.lend(arguments.lend).lent_bytes
    if not lent_bytes:
        return
    result = mine.reclaim(lent_bytes, arguments.deadline)
    if result.error is not None:
        raise result.error
    _say(
        "reclaimed",
        asked_bytes=result.asked_bytes,
        revoked_bytes=result.revoked_bytes,
        freed_bytes=result.freed_bytes,
        quarantined_bytes=result.quarantined_bytes,
        seconds=result.seconds,
    )
    if result.freed_bytes:
        memory.use(result.freed_bytes)
    _say("uses", nbytes=result.freed_bytes)


def _say(event: str, **figures: float) -> None:
    print(json.dumps({"event": event, **figures}), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="aqua_client.demo.owner", description=__doc__)
    parser.add_argument("--socket", required=True, help="the daemon's")
    parser.add_argument("--keeper-socket", required=True, help="the keeper's")
    parser.add_argument("--gpu", required=True, help="the GPU that this process runs on")
    parser.add_argument("--lend", required=True, type=int, help="bytes to lend, at most")
    parser.add_argument("--deadline", type=float, default=2.0, help="seconds for the borrowers")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
