"""The owner of a GPU that wants its memory back: a process of its own, started on that GPU.

`aqua-daemon load` registers this process's pid and bytes with the keeper and then becomes it, so it
has grown on its GPU before its first line runs. It asks for what is lent there, says what came of
it, holds the memory until its input ends, and lends again. One line of JSON for each step.
"""

from __future__ import annotations

import argparse
import json
import select
import sys
from dataclasses import asdict, replace

import aqua_client
from aqua_client.settings import ClientSettings

# Should nobody ever close its input.
HOLD_SECONDS = 300.0


def main() -> int:
    """Ask, hold, lend again."""
    arguments = _arguments()
    settings = replace(ClientSettings.from_environment(), socket_path=arguments.socket)
    with aqua_client.producer(arguments.gpu, settings=settings) as mine:
        _say("reclaimed", asdict(mine.reclaim(arguments.reclaim, arguments.deadline)))
        select.select([sys.stdin], [], [], HOLD_SECONDS)
        _say("lends again", asdict(mine.lend(arguments.lend)))
    return 0


def _say(event: str, what: dict[str, object]) -> None:
    print(json.dumps({"event": event, **what}), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="aqua_client.demo.owner", description=__doc__)
    parser.add_argument("--socket", required=True, help="the daemon's")
    parser.add_argument("--gpu", required=True, help="the GPU that this process runs on")
    parser.add_argument("--reclaim", required=True, type=int, help="bytes to ask for")
    parser.add_argument("--lend", required=True, type=int, help="bytes to lend at the end")
    parser.add_argument("--deadline", type=float, default=2.0, help="seconds for the borrowers")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
