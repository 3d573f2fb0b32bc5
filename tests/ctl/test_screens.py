"""What aquactl draws is legible without colour, and its figures are the node's."""

from __future__ import annotations

import io

import pytest
from aqua_protos import broker_pb2
from rich.console import Console, RenderableType

from aqua_daemon.ctl.screens import BAR_CELLS, duration, leases_table, status_screen
from tests.ctl.states import MIB, gpu, lease, node


def drawn(what: RenderableType) -> list[str]:
    """The lines that somebody without colours would see."""
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def line_of(lines: list[str], word: str) -> str:
    (line,) = [line for line in lines if line.startswith(word)]
    return line


def test_a_gpus_bar_is_in_proportion() -> None:
    """A quarter own, half lent, a sliver quarantined: the cells say so and fill the bar."""
    state = node(
        gpu(
            "SHM-5",
            used_by_others_bytes=64 * MIB,
            lent_bytes=128 * MIB,
            quarantined_bytes=1 * MIB,
            free_bytes=63 * MIB,
        )
    )
    line = line_of(drawn(status_screen(state)), "SHM-5")
    assert line.count("█") == BAR_CELLS // 4
    assert line.count("▓") == BAR_CELLS // 2
    assert line.count("▒") == 1
    assert line.count("░") == BAR_CELLS - BAR_CELLS // 4 - BAR_CELLS // 2 - 1
    assert line.split()[-6:] == ["256", "64", "128", "1", "63", "217"]


def test_a_full_gpu_does_not_overflow_its_bar() -> None:
    """Rounding up small shares never makes the bar longer than it is."""
    full = gpu("SHM-5", used_by_others_bytes=255 * MIB, lent_bytes=1, quarantined_bytes=1)
    line = line_of(drawn(status_screen(node(full))), "SHM-5")
    assert sum(line.count(cell) for cell in "█▓▒░") == BAR_CELLS


def test_status_fits_one_screen_and_ends_with_what_to_type() -> None:
    """Eight GPUs, tenants and fifty events stay under forty lines; the last line is a command."""
    state = node(
        *(gpu(f"SHM-{number}") for number in range(8)),
        tenants=[broker_pb2.TenantState(tenant=f"uid-{uid}", sessions=1) for uid in range(4)],
        events=[broker_pb2.EventLine(seconds_ago=1, text=f"event {n}") for n in range(50)],
    )
    lines = drawn(status_screen(state))
    assert len(lines) < 40
    assert "event 49" in "\n".join(lines)
    assert lines[-1].startswith("next  aquactl")


def test_a_lease_line_says_who_holds_what() -> None:
    """State with its reason, both GPUs, class, tenant, pid, size, use and age; oldest first."""
    old = lease(
        2,
        state=broker_pb2.LEASE_STATE_QUARANTINED,
        reason="inherited",
        state_seconds=7500.0,
        borrower_gpu="",
    )
    lines = drawn(leases_table([lease(1), old]))
    said = " ".join(lines[1].split())
    assert said == "000000000000 quarantined (inherited) SHM-1 - store uid-1000 4242 32 50% 2h"
    assert " leased " in lines[2]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, "0s"), (59.9, "59s"), (60.0, "1m"), (3599.0, "59m"), (3600.0, "1h"), (200000.0, "2d")],
)
def test_durations_are_short(seconds: float, said: str) -> None:
    """A figure and the largest unit that leaves one."""
    assert duration(seconds) == said
