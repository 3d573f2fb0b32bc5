"""What aquactl draws of a lease and of a time."""

from __future__ import annotations

import io

import pytest
from aqua_protos import broker_pb2
from rich.console import Console, RenderableType

from aqua_daemon.ctl.screens import duration, leases_table
from tests.ctl.states import lease


def drawn(what: RenderableType) -> list[str]:
    """The lines that somebody without colours would see."""
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


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


@pytest.mark.parametrize("columns", [78, 80, 100, 120, 160])
def test_a_narrow_terminal_still_tells_who_holds_how_much(columns: int) -> None:
    """Names get shorter and columns go; the state, the tenant's beginning and figures stay whole."""
    uuid = "GPU-b4b6aefe-c140-5927-b146-0eb66bdff6dd"
    held = lease(
        1,
        tenant="uid-1000/system.slice/vllm-production.service",
        state=broker_pb2.LEASE_STATE_QUARANTINED,
        reason="inherited",
        lender_gpu=uuid,
        borrower_gpu=uuid,
        pid=4194304,
    )
    head, line = str(leases_table([held], columns=columns)).splitlines()
    assert len(line) <= columns
    assert len(head) == len(line)
    assert "quarantined (inherited)  GPU-b4b6aefe" in line
    assert "  uid-1" in line
    assert "4194304   32" in line
    assert line.endswith("5s")
    assert ("50%" in line) == (columns > 80)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, "0s"), (59.9, "59s"), (60.0, "1m"), (3599.0, "59m"), (3600.0, "1h"), (200000.0, "2d")],
)
def test_durations_are_short(seconds: float, said: str) -> None:
    """A figure and the largest unit that leaves one."""
    assert duration(seconds) == said
