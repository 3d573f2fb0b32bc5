"""The last chapter: a rush served in two ways, and the rows that show who waited for what."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from aqua_client.demo import running
from aqua_client.demo.board import Board
from aqua_client.demo.happenings import Happening, RushBegan, RushEnded, TokensCame
from aqua_client.demo.model import Model
from aqua_client.demo.plan import QUICK
from aqua_client.demo.report import show
from aqua_client.demo.screen import Screen
from aqua_client.demo.summary import Summary
from aqua_client.demo.timelines import PARKED, SPEAKS, WAITS, Timeline, drawn, row
from tests.demo.test_report import WHOLE
from tests.demo.test_screens import written
from tests.integrations.hosting import host_client

FCFS, FAIR = "first come, first served", "fair slices over leases"


def told(way: str, *came: tuple[int, float], parked: int = 0) -> list[Happening]:
    """Two requests of two tokens each, (request, seconds) by token."""
    tokens = [TokensCame(way=way, request=one, tokens=1, seconds=at) for one, at in came]
    began = RushBegan(way=way, reply_tokens=(2, 2))
    return [began, *tokens, RushEnded(way=way, parked=parked)]


TOLD = [
    *told(FCFS, (0, 0.1), (0, 2.0), (1, 3.0), (1, 4.0)),
    *told(FAIR, (0, 0.1), (1, 0.5), (0, 1.9), (1, 2.0), parked=1),
]


def board_of(happenings: list[Happening]) -> Board:
    board = Board(QUICK)
    for one in happenings:
        board.tell(one)
    return board


def rushed() -> Summary:
    return replace(WHOLE, rush=tuple(board_of(TOLD).timelines.values()))


def test_a_rush_is_answered_in_full_in_both_ways() -> None:
    """On a real engine, in the same order; in slices somebody gives way, and comes back."""
    with host_client() as client:
        timelines, why_not = running._rush(
            QUICK, Model(QUICK.shape, threads=1), client, tell=lambda _: None
        )
    assert why_not == ""
    assert [one.way for one in timelines] == [FCFS, FAIR]
    for one in timelines:
        assert tuple(map(len, one.came)) == QUICK.rush.reply_tokens
        assert one.is_over
    assert timelines[0].parked == 0 < timelines[1].parked
    assert replace(WHOLE, rush=timelines).faults() == []


def test_without_its_engine_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the demo goes on, and the summary says how to get it."""
    monkeypatch.setitem(sys.modules, "aqua_client.demo.rush", None)
    with host_client() as client:
        timelines, why_not = running._rush(
            QUICK, Model(QUICK.shape, threads=1), client, tell=lambda _: None
        )
    assert timelines == ()
    assert "pip install 'aqua-broker[serving]'" in why_not
    out = io.StringIO()
    show(replace(WHOLE, rush_left_out=why_not), Console(file=out, width=120))
    assert "left out: " in out.getvalue()


def test_a_row_shows_waiting_speaking_and_giving_way() -> None:
    """A column a second: silence until the fourth, tokens, a short pause and a long one, the last."""
    signs = row([3.5, 4.5, 6.5, 11.5], now=13.9, span=14.0, width=14, is_over=True)
    assert signs == f"{WAITS * 3}{SPEAKS * 4}{PARKED * 4}{SPEAKS}  "
    assert row([], now=4.9, span=10.0, width=10, is_over=False) == WAITS * 5


def test_both_ways_have_one_axis() -> None:
    """Half the time is half the row, whichever of the two took longer."""
    for width in (40, 80):
        lines = [line.plain for line in drawn([*board_of(TOLD).timelines.values()], width=width)]
        assert all(len(line) <= max(width, 80) for line in lines)
        slow, fast = (line.rstrip() for line in (lines[2], lines[5]))
        assert slow.startswith("  2 ·")
        assert fast.startswith("  2 ·")
        assert 0.4 < (len(fast) - 4) / (len(slow) - 4) < 0.6
        assert lines[6].lstrip().startswith("0")
        assert lines[6].endswith("4.0 s")


def test_a_live_frame_fits_a_small_terminal() -> None:
    """24 rows of 80 columns: both timelines, what they came to, and the axis; also half way."""
    console = Console(file=io.StringIO(), width=80, height=24, record=True)
    screen = Screen(Board(QUICK), console, home_gpu="SHM-0")
    replies = (9,) * 8
    for way in (FCFS, FAIR):
        screen.tell(RushBegan(way=way, reply_tokens=replies))
        screen.tell(TokensCame(way=way, request=0, tokens=9, seconds=1.5))
    console.print(screen)
    frame = console.export_text()
    assert len(frame.splitlines()) < 24
    assert max(map(len, frame.splitlines())) <= 80
    assert frame.count("1 of 8 have their first token") == 2
    assert "has given way" in frame


@pytest.mark.parametrize("colours", [True, False])
def test_the_report_shows_both(*, colours: bool) -> None:
    """With their first tokens; without colours there are none, and the signs are enough."""
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, no_color=not colours)
    show(rushed(), console)
    text = out.getvalue()
    assert ("\x1b[32m" in text) == colours
    plain = io.StringIO()
    show(rushed(), Console(file=plain, width=80))
    assert "\x1b" not in plain.getvalue()
    assert f"{FCFS}: TTFT p50 1.55 s, p99 2.97 s; all after 4.0 s" in plain.getvalue()
    assert f"{FAIR}: TTFT p50 0.30 s, p99 0.50 s; all after 2.0 s" in plain.getvalue()
    assert SPEAKS in plain.getvalue()


def test_plain_lines_say_what_it_came_to() -> None:
    """A line for each way, and none for each token."""
    lines = written(tuple(TOLD)).splitlines()
    assert [line.split("  rush")[1].strip()[:4] for line in lines] == ["firs", "fair"]


def test_missing_tokens_and_a_rush_without_turns_are_faults() -> None:
    """Each is a sentence."""
    plain, fair = rushed().rush
    lacking = Timeline(way=FAIR, reply_tokens=(2, 2), came=[[0.1, 0.2], [0.3]], parked=1)
    assert (
        "answered with 4 tokens, in slices 3" in replace(WHOLE, rush=(plain, lacking)).faults()[0]
    )
    fair.parked = 0
    assert "Nobody gave way" in replace(WHOLE, rush=(plain, fair)).faults()[0]
    assert rushed().document()["rush"] == [one.document() for one in rushed().rush]
