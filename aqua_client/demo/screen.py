"""The live screen: progress, the KV budget, the GPUs' memory and the last events."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aqua_client.demo.board import MOVES_KEPT, NEWS_KEPT, Board, Line, in_tiers
from aqua_client.demo.happenings import GpuBytes, Happening, TakenBack, TurnEnded
from aqua_client.demo.plan import MIB, mib
from aqua_client.demo.timelines import drawn

FRAMES_PER_SECOND = 5
WIDTH = 112
NAME_WIDTH = 11
BAR_WIDTH = 38  # of a frame of full width; a narrower one has narrower bars
LEAST_BAR_WIDTH = 12
ROOMY_ROWS = 40  # a terminal of fewer gets no empty rows and fewer events
TIGHT_NEWS, TIGHT_MOVES = 4, 1
EVENT_STYLES = {
    "stage": "bold",
    "parked": "cyan",
    "fetched": "green",
    "revoked": "yellow",
    "owner": "magenta",
    "rush": "bold",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a part of a GPU's memory is used for, and how it is drawn."""

    name: str
    sign: str
    style: str
    of: Callable[[GpuBytes], int]


USES = (
    Use(name="own", sign="█", style="magenta", of=lambda gpu: gpu.own),
    Use(name="lent", sign="▒", style="cyan", of=lambda gpu: gpu.lent),
    Use(name="returning", sign="░", style="yellow", of=lambda gpu: gpu.returning),
    Use(name="quarantined", sign="x", style="red", of=lambda gpu: gpu.quarantined),
    Use(name="free", sign="·", style="bright_black", of=lambda gpu: gpu.free),
)


class Screen:
    """A board, drawn again and again."""

    def __init__(self, board: Board, console: Console, *, home_gpu: str) -> None:
        self._board = board
        self._console = console
        self._home_gpu = home_gpu
        self._live = Live(
            self, console=console, refresh_per_second=FRAMES_PER_SECOND, transient=True
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def tell(self, happening: Happening) -> None:
        """Take in what has happened; the next frame shows it."""
        self._board.tell(happening)

    def __rich__(self) -> Panel:
        width = min(WIDTH, self._console.width)
        bar_width = max(BAR_WIDTH - (WIDTH - width), LEAST_BAR_WIDTH)
        is_roomy = self._console.height >= ROOMY_ROWS
        gap = 2 if width >= WIDTH else 1
        with self._board.lock:
            if self._board.timelines:
                return _rush(self._board, width)
            parts = (
                _progress(self._board, bar_width, gap),
                _counts(self._board, gap),
                _gpus(self._board.gpus, self._home_gpu, bar_width, gap),
                _events(self._board.news, NEWS_KEPT if is_roomy else TIGHT_NEWS, gap),
                _events(self._board.moves, MOVES_KEPT if is_roomy else TIGHT_MOVES, gap),
            )
            spaced = [row for part in parts for row in (Text(), part)][1:]
            return Panel(
                Group(*(spaced if is_roomy else parts)),
                title="[bold]AQUA[/]  more conversations than the KV budget holds",
                subtitle=f"{self._board.stage}  [bold]{self._board.seconds():.0f} s[/]",
                border_style="blue",
                padding=(1, 2) if is_roomy else (0, 1),
                width=width,
            )


def _rush(board: Board, width: int) -> Panel:
    """The last chapter has the screen for itself."""
    lines = drawn([*board.timelines.values()], width=width - 4)
    return Panel(
        Group(*lines),
        title=f"[bold]AQUA[/]  {len(board.plan.rush.reply_tokens)} requests at once, a KV cache for a few",
        subtitle=f"{board.stage}  [bold]{board.seconds():.0f} s[/]",
        border_style="blue",
        padding=(0, 1),
        width=width,
    )


def _progress(board: Board, bar_width: int, gap: int) -> Table:
    grid = Table.grid(padding=(0, gap))
    grid.add_column(style="bold", width=NAME_WIDTH)
    grid.add_column(min_width=bar_width)
    grid.add_column(no_wrap=True)
    for run in ("reference", "parking"):
        grid.add_row(*_run_row(board, run, bar_width))
    parking = board.runs.get("parking")
    budget = board.plan.kv_budget_bytes
    resident = parking.resident_bytes if parking else 0
    bar = ProgressBar(
        total=budget, completed=resident, width=bar_width, complete_style="cyan", style="grey23"
    )
    needed = f"all need {mib(board.plan.final_kv_bytes)} at the end"
    grid.add_row("KV resident", bar, f"{mib(resident)} of {mib(budget)}, {needed}")
    return grid


def _counts(board: Board, gap: int) -> Table:
    grid = Table.grid(padding=(0, gap))
    grid.add_column(style="bold", min_width=NAME_WIDTH, no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    went, came = in_tiers(board.parked_bytes), in_tiers(board.fetched_bytes)
    grid.add_row("KV moved", f"parked {went};  fetched {came}")
    grid.add_row("revokes", _served(board))
    grid.add_row("burst", _burst(board.taken_back))
    grid.add_row("answers", _equal(board.runs.get("parking")))
    return grid


def _run_row(board: Board, run: str, bar_width: int) -> tuple[str, ProgressBar, str]:
    total = board.plan.total_turns
    last = board.runs.get(run)
    bar = ProgressBar(
        total=total, completed=last.turns_done if last else 0, width=bar_width, style="grey23"
    )
    if last is None:
        return run, bar, f"{total} turns to come"
    speed = f"{last.tokens_done} tokens, {last.tokens_per_second:.0f} tokens/s"
    return run, bar, f"{last.turns_done} of {total} turns, {speed}"


def _served(board: Board) -> str:
    if not board.revokes:
        return "none yet"
    return f"[yellow]{board.revokes} served, {mib(board.evacuated_bytes)} evacuated[/]"


def _burst(taken: TakenBack | None) -> str:
    if taken is None:
        return "none yet"
    asked, freed, again = (
        f"{nbytes / MIB:.0f}"
        for nbytes in (taken.asked_bytes, taken.freed_bytes, taken.lent_again_bytes)
    )
    said = f"{taken.gpu}: {asked} MiB asked back, {freed} freed in {taken.seconds:.2f} s"
    return f"[magenta]{said}, {again} lent again[/]"


def _equal(parking: TurnEnded | None) -> str:
    if parking is None:
        return "-"
    if parking.differing:
        return f"[bold red]{parking.differing} differ from the run that never parked[/]"
    return f"[green]{parking.turns_done} of {parking.turns_done} as in the run that never parked[/]"


def _gpus(gpus: tuple[GpuBytes, ...], home_gpu: str, bar_width: int, gap: int) -> Table:
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("GPU", width=NAME_WIDTH)
    table.add_column("MiB", width=bar_width)
    for use in USES:
        header = f"{use.sign} {use.name}"
        table.add_column(Text(header, style=use.style), justify="right", min_width=len(header))
    for gpu in gpus:
        named = f"{gpu.gpu} [bright_black]home[/]" if gpu.gpu == home_gpu else gpu.gpu
        table.add_row(named, _bar(gpu, bar_width), *(_mib_or_nothing(use.of(gpu)) for use in USES))
    return table


def _bar(gpu: GpuBytes, width: int) -> Text:
    """The uses in proportion; what is free fills the rest."""
    *held, free = USES
    bar = Text()
    for use in held:
        share = use.of(gpu) / gpu.total if gpu.total else 0.0
        bar.append(use.sign * round(share * width), style=use.style)
    bar.truncate(width)
    return bar.append(free.sign * (width - len(bar)), style=free.style)


def _mib_or_nothing(nbytes: int) -> str:
    return f"{nbytes / MIB:.0f}" if nbytes else "[bright_black]-[/]"


def _events(lines: deque[Line], rows: int, gap: int) -> Table:
    grid = Table.grid(padding=(0, gap))
    grid.add_column(justify="right", style="bright_black", min_width=7, no_wrap=True)
    grid.add_column(min_width=7, no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    shown = list(lines)[-rows:]
    for line in shown:
        style = EVENT_STYLES[line.kind]
        grid.add_row(f"{line.seconds:.1f} s", Text(line.kind, style=style), Text(line.text))
    for _ in range(rows - len(shown)):
        grid.add_row("", "", "")  # so that the screen keeps its height
    return grid
