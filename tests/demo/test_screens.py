"""The live screen and the plain lines, drawn on a console of our own."""

from __future__ import annotations

import io

from rich.console import Console

from aqua_client.demo.board import Board, in_tiers
from aqua_client.demo.happenings import (
    Fetched,
    GpuBytes,
    Happening,
    NodeSeen,
    OwnerSaid,
    Parked,
    RevokesServed,
    Stage,
    TakenBack,
    TurnEnded,
)
from aqua_client.demo.lines import Lines
from aqua_client.demo.plan import FULL, MIB
from aqua_client.demo.screen import Screen


def turn(done: int, *, run: str = "parking", differing: int = 0) -> TurnEnded:
    return TurnEnded(
        run=run,
        conversation=1,
        turns_done=done,
        tokens_done=done * FULL.reply_tokens,
        tokens_per_second=200.0,
        resident_bytes=45 * MIB,
        differing=differing,
    )


def lending(name: str, lent: int) -> GpuBytes:
    free = (256 - lent) * MIB
    return GpuBytes(gpu=name, own=0, lent=lent * MIB, quarantined=0, returning=0, free=free)


RUN: tuple[Happening, ...] = (
    Stage(title="serving"),
    NodeSeen(gpus=(lending("SHM-0", 0), lending("SHM-1", 64))),
    turn(100, run="reference"),
    Parked(conversation=3, tier_bytes={"peer": 9 * MIB}),
    Fetched(conversation=4, tier_bytes={"host": 2 * MIB, "peer": 5 * MIB}),
    turn(10),
    OwnerSaid(text="a process starts on SHM-1"),
    RevokesServed(revokes=2, evacuated_bytes=40 * MIB),
    TakenBack(
        gpu="SHM-1",
        asked_bytes=36 * MIB,
        revoked_bytes=36 * MIB,
        freed_bytes=32 * MIB,
        quarantined_bytes=4 * MIB,
        seconds=0.25,
        lent_again_bytes=8 * MIB,
    ),
)


def drawn(happenings: tuple[Happening, ...], *, width: int = 120, height: int = 50) -> str:
    """One frame after these."""
    console = Console(file=io.StringIO(), width=width, height=height, record=True)
    screen = Screen(Board(FULL), console, home_gpu="SHM-0")
    for happening in happenings:
        screen.tell(happening)
    console.print(screen)
    return console.export_text()


def written(happenings: tuple[Happening, ...]) -> str:
    """The plain lines of these."""
    out = io.StringIO()
    with Lines(Board(FULL), Console(file=out, width=80)) as lines:
        for happening in happenings:
            lines.tell(happening)
    return out.getvalue()


def test_a_frame_shows_progress_leases_and_events() -> None:
    """Both runs, the budget, each GPU, the last events and the count of revokes."""
    frame = drawn(RUN)
    for part in (
        "100 of 100 turns",
        "10 of 100 turns, 240 tokens, 200 tokens/s",
        "45.0 MiB of 50.0 MiB",
        "10 of 10 as in the run that never parked",
        "SHM-0 home",
        "SHM-1",
        "conversation 3 -> peer 9.0 MiB",
        "conversation 4 <- host 2.0 MiB, peer 5.0 MiB",
        "a process starts on SHM-1",
        "2 served, 40.0 MiB evacuated",
        "SHM-1: 36 MiB asked back, 32 freed in 0.25 s, 8 lent again",
        "serving",
    ):
        assert part in frame, part


def test_a_frame_can_be_drawn_before_anything_has_happened() -> None:
    """The screen is up while the model is still being made."""
    assert "turns to come" in drawn(())


def test_frames_keep_their_height() -> None:
    """What moves is inside the frame, not the frame."""
    many = tuple(Parked(conversation=number) for number in range(50))
    start = (NodeSeen(gpus=(lending("SHM-1", 3),)),)
    assert len(drawn(start).splitlines()) == len(drawn(start + many).splitlines())


def test_the_bar_of_a_gpu_shows_its_share() -> None:
    """A quarter lent is a quarter of the bar."""
    row = next(line for line in drawn(RUN).splitlines() if "SHM-1 " in line and "▒" in line)
    held, free = row.count("▒"), row.count("·")
    assert abs(held / (held + free) - 0.25) < 0.03


def test_differing_answers_are_shown() -> None:
    """As soon as there is one."""
    assert "1 differ from the run that never parked" in drawn((turn(5, differing=1),))


def test_a_narrow_terminal_is_no_error() -> None:
    """Rows are cut, not wrapped into a heap."""
    assert all(len(line) <= 60 for line in drawn(RUN, width=60).splitlines())


def test_a_small_terminal_shows_all_gpus_and_the_burst() -> None:
    """24 rows of 80 columns hold what matters: no row is cut off, and the last events are there."""
    gpus = tuple(lending(f"SHM-{number}", number) for number in range(8))
    frame = drawn((*RUN, NodeSeen(gpus=gpus)), width=80, height=24)
    assert len(frame.splitlines()) < 24
    for part in ("SHM-7", "free", "8 lent again", "a process starts on SHM-1"):
        assert part in frame, part


def test_plain_lines_tell_what_matters() -> None:
    """Stages, the owner, revokes and now and then a turn with what each GPU lends."""
    text = written(RUN)
    assert "stage" in text
    assert "a process starts on SHM-1" in text
    assert "2 served, 40.0 MiB moved away" in text
    assert "10 of 100 turns, 200 tokens/s, resident KV 45.0 MiB, MiB lent by each GPU: 0 64" in text


def test_plain_lines_leave_out_the_many() -> None:
    """Each single move would be hundreds of lines."""
    assert "conversation" not in written(RUN)
    assert written((turn(11), turn(12))) == ""


def test_plain_lines_carry_no_colours() -> None:
    """What is not a terminal gets text."""
    assert "\x1b" not in written(RUN)


def test_bytes_by_tier_in_words() -> None:
    """Nothing is said to be nothing."""
    assert in_tiers({}) == "nothing"
    assert in_tiers({"peer": MIB, "host": 2 * MIB}) == "host 2.0 MiB, peer 1.0 MiB"
