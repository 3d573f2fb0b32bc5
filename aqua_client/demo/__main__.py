"""The command `python -m aqua_client.demo`.

Exit status: 0 all promises kept, 1 one broken or no run, 128 + n ended by signal n.
"""

from __future__ import annotations

import json
import signal
import sys
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console

from aqua_client.demo.board import Board
from aqua_client.demo.happenings import Stage
from aqua_client.demo.lines import Lines
from aqua_client.demo.node import Node, NodeFailed
from aqua_client.demo.plan import FULL, HOME_GPU, QUICK
from aqua_client.demo.report import show
from aqua_client.demo.screen import Screen


class Stopped(BaseException):
    """A signal asked for the end; everything started is ended on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Only the summary, as JSON, on stdout.")
@click.option("--quick", is_flag=True, help="Fewer and shorter conversations.")
def main(*, as_json: bool, quick: bool) -> None:
    """Serve more conversations than the KV budget holds, on a node of 8 shm GPUs."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    console = Console(stderr=as_json)
    board = Board(QUICK if quick else FULL)
    live = console.is_terminal and not console.is_dumb_terminal
    screen = Screen(board, console, home_gpu=HOME_GPU) if live else Lines(board, console)
    try:
        with screen, Node() as node:
            screen.tell(Stage(title="starting a node of 8 shm GPUs, and PyTorch"))
            # Late: torch and transformers take seconds, in which the node comes up.
            from aqua_client.demo.running import run

            summary = run(board.plan, node, tell=screen.tell)
    except Stopped as stopped:
        click.echo("stopped; the node has been ended", err=True)
        sys.exit(128 + stopped.number)
    except NodeFailed as error:
        click.echo(f"aqua_client.demo: {error}", err=True)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps(summary.document(), indent=2))
        for fault in summary.faults():
            click.echo(fault, err=True)
    else:
        show(summary, console)
    sys.exit(1 if summary.faults() else 0)


def _stop(number: int, _: FrameType | None) -> NoReturn:
    """Once: a second signal must not stop the cleaning up."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(number)


if __name__ == "__main__":
    main()
