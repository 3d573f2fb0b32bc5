"""The run as plain lines, for what is not a terminal: stages, owner, revokes, now and then a turn."""

from __future__ import annotations

from typing import Self

from rich.console import Console

from aqua_client.demo.board import Board
from aqua_client.demo.happenings import Happening, TurnEnded
from aqua_client.demo.plan import MIB, mib

# A run tells of itself so many times.
TELLINGS = 10


class Lines:
    """A board whose events are written down as they come."""

    def __init__(self, board: Board, console: Console) -> None:
        self._board = board
        self._console = console
        self._every = max(board.plan.total_turns // TELLINGS, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def tell(self, happening: Happening) -> None:
        """Take in what has happened, and write a line where it is worth one."""
        with self._board.lock:
            line = self._board.tell(happening)
            if line is not None and not line.is_move:
                self._write(line.kind, line.text)
            if isinstance(happening, TurnEnded) and happening.turns_done % self._every == 0:
                self._write(happening.run, self._progress(happening))

    def _progress(self, turn: TurnEnded) -> str:
        said = (
            f"{turn.turns_done} of {self._board.plan.total_turns} turns, "
            f"{turn.tokens_per_second:.0f} tokens/s, resident KV {mib(turn.resident_bytes)}"
        )
        lent = " ".join(f"{gpu.lent / MIB:.0f}" for gpu in self._board.gpus)
        return f"{said}, MiB lent by each GPU: {lent}" if turn.run == "parking" else said

    def _write(self, kind: str, text: str) -> None:
        seconds = self._board.seconds()
        self._console.print(
            f"{seconds:7.1f} s  {kind:9}  {text}", markup=False, highlight=False, soft_wrap=True
        )
