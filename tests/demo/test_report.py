"""The summary as people see it, and the words of the board and of the owner."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from aqua_client.demo.board import Board
from aqua_client.demo.happenings import (
    Fetched,
    OwnerSaid,
    Parked,
    RevokesServed,
    Stage,
    TakenBack,
)
from aqua_client.demo.neighbours import in_words
from aqua_client.demo.plan import FULL, MIB, mib
from aqua_client.demo.report import show
from aqua_client.demo.summary import Summary

TAKEN = TakenBack(
    gpu="SHM-4",
    asked_bytes=36 * MIB,
    revoked_bytes=36 * MIB,
    freed_bytes=32 * MIB,
    quarantined_bytes=4 * MIB,
    seconds=2.25,
    lent_again_bytes=256 * MIB,
)
WHOLE = Summary(
    conversations=20,
    turns=100,
    tokens=2400,
    threads=1,
    kv_budget_bytes=48 * MIB,
    peak_resident_kv_bytes=47 * MIB,
    all_kv_bytes=281 * MIB,
    parks=93,
    fetches=76,
    parked_bytes={"peer": 900 * MIB, "host": 90 * MIB},
    fetched_bytes={"peer": 700 * MIB, "mixed": 51 * MIB},
    lenders={"SHM-4": 64 * MIB, "SHM-1": 36 * MIB},
    revokes_served=2,
    evacuated_bytes=32 * MIB,
    fallbacks={},
    taken_back=TAKEN,
    differing_outputs=[],
    tensors_compared=912,
    tensors_differing=0,
    reference_seconds=18.5,
    parking_seconds=22.7,
    seconds=44.3,
)


def shown(summary: Summary, *, terminal: bool = False, colours: bool = True) -> str:
    """What is written of it."""
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=terminal, no_color=not colours)
    show(summary, console)
    return out.getvalue()


def test_every_figure_is_written() -> None:
    """One line each, where the output is no terminal."""
    lines = {line[:18].strip(): line[20:] for line in shown(WHOLE).splitlines()}
    assert lines["conversations"] == "20, 100 turns, 2400 tokens answered"
    assert lines["resident KV, peak"].startswith("47.0 MiB of a budget of 48.0 MiB; all")
    assert lines["parked"] == "host 90.0 MiB, peer 900.0 MiB   (93 times)"
    assert lines["fetched"] == "mixed 51.0 MiB, peer 700.0 MiB   (76 times)"
    assert lines["lent at most"] == "SHM-1 36.0 MiB, SHM-4 64.0 MiB"
    assert lines["revokes served"] == "2, 32.0 MiB evacuated"
    assert lines["outputs equal"].startswith("yes: 2400 of 2400 tokens")
    assert lines["parked bytes equal"] == "yes: 912 tensors came back as they went"
    assert lines["seconds"] == "44.3 (reference 18.5, parking 22.7)"


def test_what_was_taken_back_is_written_with_what_was_not() -> None:
    """Bytes in quarantine are named."""
    text = shown(WHOLE)
    assert "SHM-4: its owner had a burst and asked for 36.0 MiB, 32.0 MiB freed in 2.25 s" in text
    assert "256.0 MiB lent again afterwards" in text
    assert "4.0 MiB quarantined" in text
    assert "quarantined" not in shown(
        replace(WHOLE, taken_back=replace(TAKEN, quarantined_bytes=0))
    )


def test_what_differs_is_written() -> None:
    """In its row, and as a fault."""
    text = shown(replace(WHOLE, differing_outputs=[3, 7], tensors_differing=5))
    assert "no: 2 conversations differ" in text
    assert "no: 5 of 912 tensors differ" in text
    assert "FAILED  The answers of conversations 3, 7 differ" in text
    assert "FAILED  5 of 912 parked tensors came back with other bytes" in text
    assert "PASSED" not in text


def test_a_run_without_leases_says_so() -> None:
    """And why, where the client knows."""
    alone = replace(
        WHOLE, parked_bytes={"host": MIB}, lenders={}, fallbacks={"no_daemon": 12}, taken_back=None
    )
    text = shown(alone)
    assert "lent at most        nothing" in text
    assert "taken back          nothing" in text
    assert "because of: no_daemon 12x" in text
    assert "to host because of  no_daemon 12x" in text


def test_a_machine_finds_every_tier() -> None:
    """Also those that nothing went to."""
    document = WHOLE.document()
    assert document["parked_bytes"] == {"peer": 900 * MIB, "host": 90 * MIB, "mixed": 0}
    assert document["fetched_bytes"] == {"peer": 700 * MIB, "host": 0, "mixed": 51 * MIB}


def test_a_terminal_gets_a_frame_and_the_verdict_in_its_title() -> None:
    """Green or red."""
    assert "PASSED" in shown(WHOLE, terminal=True).splitlines()[0]
    failed = shown(replace(WHOLE, revokes_served=0), terminal=True)
    assert "FAILED" in failed.splitlines()[0]
    assert "No revoke was served" in failed


def test_no_color_leaves_colours_out() -> None:
    """On a terminal too."""
    assert "\x1b[32m" in shown(WHOLE, terminal=True) or "\x1b[1;32m" in shown(WHOLE, terminal=True)
    assert "32m" not in shown(WHOLE, terminal=True, colours=False)


def test_a_board_counts_what_it_is_told() -> None:
    """Bytes by tier and revokes add up; lines are kept by kind, the last ones."""
    board = Board(FULL)
    board.tell(Stage(title="serving"))
    for number in range(50):
        board.tell(Parked(conversation=number, tier_bytes={"peer": 2, "host": 1}))
        board.tell(Fetched(conversation=number, tier_bytes={"peer": 2}))
    board.tell(RevokesServed(revokes=1, evacuated_bytes=10))
    board.tell(RevokesServed(revokes=2, evacuated_bytes=5))
    board.tell(TAKEN)
    assert board.parked_bytes == {"peer": 100, "host": 50}
    assert board.fetched_bytes == {"peer": 100}
    assert (board.revokes, board.evacuated_bytes) == (3, 15)
    assert board.taken_back == TAKEN
    assert [line.kind for line in board.news] == ["stage", "revoked", "revoked"]
    assert board.moves[-1].text.startswith("conversation 49 <-")


def test_the_many_moves_do_not_push_out_the_news() -> None:
    """What the owner said is still there after a hundred moves."""
    board = Board(FULL)
    board.tell(OwnerSaid(text="it comes"))
    for number in range(100):
        board.tell(Parked(conversation=number))
    assert [line.text for line in board.news] == ["it comes"]


@pytest.mark.parametrize(
    ("event", "figures", "words"),
    [
        ("loaded", {"bytes": 2.0 * MIB, "pid": 9.0}, "SHM-1: a process uses 2.0 MiB of it"),
        ("lends", {}, "SHM-1: its owner has little to do, and lends"),
        ("uses", {"nbytes": 3.0 * MIB}, "SHM-1: its owner uses 3.0 MiB more itself now"),
        ("lends again", {}, "SHM-1: the burst is over, its owner lends again"),
        ("something else", {}, "SHM-1: something else"),
    ],
)
def test_the_owner_in_words(event: str, figures: dict[str, float], words: str) -> None:
    """Each line that its process writes is shown as a sentence."""
    assert in_words("SHM-1", event, figures) == words


def test_a_reclaim_in_words_names_quarantine_only_where_there_is_some() -> None:
    """Bytes that did not come back in time matter; none of them do not."""
    figures: dict[str, float] = {
        "asked_bytes": 36 * MIB,
        "revoked_bytes": 36 * MIB,
        "freed_bytes": 32 * MIB,
        "quarantined_bytes": 4 * MIB,
        "seconds": 2.25,
    }
    said = in_words("SHM-1", "reclaimed", figures)
    assert said.startswith("SHM-1: a burst: 36.0 MiB asked back, 32.0 MiB freed in 2.25 s")
    assert said.endswith("4.0 MiB quarantined")
    assert "quarantined" not in in_words("SHM-1", "reclaimed", {**figures, "quarantined_bytes": 0})


def test_bytes_in_mib() -> None:
    """To a tenth."""
    assert mib(int(1.25 * MIB)) == "1.2 MiB"
