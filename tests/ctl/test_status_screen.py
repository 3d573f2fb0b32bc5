"""The status screen is legible without colour, fits its terminal, and its figures are the node's."""

from __future__ import annotations

import io
import json

import pytest
from aqua_protos import broker_pb2
from rich.console import Console

from aqua_daemon.ctl.documents import status_document
from aqua_daemon.ctl.status_screen import BAR_CELLS, COLUMNS, ROWS, status_screen
from tests.ctl.states import MIB, gpu, node

UUID = "GPU-0000000{}-0000-0000-0000-000000000000"
H100_BYTES = 81559 * MIB


def drawn(
    state: broker_pb2.GetStateReply, *, columns: int = COLUMNS, rows: int = ROWS
) -> list[str]:
    """The lines that somebody without colours would see."""
    console = Console(file=io.StringIO(), width=columns, color_system=None)
    console.print(status_screen(state, columns=columns, rows=rows))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def line_of(lines: list[str], word: str) -> str:
    (line,) = [line for line in lines if line.startswith(word)]
    return line


def h100(number: int, **figures: object) -> broker_pb2.GpuState:
    """A real GPU of the usual size, a half of it lent."""
    usual: dict[str, object] = {
        "total_bytes": H100_BYTES,
        "lent_bytes": H100_BYTES // 2,
        "free_bytes": H100_BYTES // 2,
        "model": "NVIDIA H100 80GB HBM3",
    }
    return gpu(UUID.format(number), **(usual | figures))


def crowded(**fields: object) -> broker_pb2.GetStateReply:
    """Eight GPUs, each with something to say, many tenants, many long events."""
    tenants = [
        broker_pb2.TenantState(
            tenant=f"uid-{uid}/vllm-{uid}.service", sessions=1, leased_bytes=uid * MIB
        )
        for uid in range(1000, 1012)
    ]
    events = [
        broker_pb2.EventLine(
            seconds_ago=50 - n,
            text=f"lease 1a1a1a{n:02} of uid-1000 on {UUID.format(1)}: allocating -> leased",
        )
        for n in range(50)
    ]
    gpus = [
        h100(0, trouble="its keeper does not answer"),
        h100(1, quarantined_bytes=512 * MIB),
        h100(2, quiet_seconds=540.0),
        *(h100(number, warnings=["ECC is off"]) for number in range(3, 8)),
    ]
    return node(*gpus, tenants=tenants, events=events, **fields)


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
    line = line_of(drawn(state), "SHM-5")
    assert line.count("█") == BAR_CELLS // 4
    assert line.count("▓") == BAR_CELLS // 2
    assert line.count("▒") == 1
    assert line.count("░") == BAR_CELLS - BAR_CELLS // 4 - BAR_CELLS // 2 - 1
    assert line.split()[-6:] == ["256", "64", "128", "1", "63", "217"]


def test_a_full_gpu_does_not_overflow_its_bar() -> None:
    """Rounding up small shares never makes the bar longer than it is."""
    full = gpu("SHM-5", used_by_others_bytes=255 * MIB, lent_bytes=1, quarantined_bytes=1)
    line = line_of(drawn(node(full)), "SHM-5")
    assert sum(line.count(cell) for cell in "█▓▒░") == BAR_CELLS


def test_figures_stand_under_their_heads() -> None:
    """Every line of the table ends in the same column."""
    lines = drawn(node(*map(h100, range(8))), columns=80)
    table = [line_of(lines, word) for word in ("GPU  ", *(f"GPU-0000000{n}" for n in range(8)))]
    assert {len(line.rstrip()) for line in table} == {len(table[0].rstrip())}
    assert table[0].split() == [
        "GPU",
        "MIB",
        "TOTAL",
        "█OWN",
        "▓LENT",
        "▒QUAR",
        "░FREE",
        "LENDABLE",
    ]


@pytest.mark.parametrize(
    ("columns", "rows"), [(80, 24), (80, 25), (120, 40), (160, 24), (300, 100)]
)
@pytest.mark.parametrize("is_bad", [False, True])
def test_status_fits_one_screen_and_ends_with_what_to_type(
    columns: int, rows: int, *, is_bad: bool
) -> None:
    """Whatever there is to say, the prompt has its line, none is too wide, the last is a command."""
    state = crowded(restarting=is_bad, invariant_violations=2 if is_bad else 0)
    lines = drawn(state, columns=columns, rows=rows)
    assert len(lines) < rows
    assert max(map(len, lines)) <= columns
    assert lines[-1].startswith("next  journalctl")
    said = "\n".join(lines)
    assert all(f"GPU-0000000{number}" in said for number in range(8))
    assert "allocating -> leased" in said
    assert "1a1a1a49" in said


def test_the_headlines_figures_are_never_cut() -> None:
    """Where it is narrow the number of GPUs goes first: they stand below."""
    full = crowded(
        restarting=True, sessions=128, host_pool_bytes=10**6 * MIB, host_reserved_bytes=10**5 * MIB
    )
    head = drawn(full, columns=80)[0]
    assert head == "AQUA 0.1.0  RESTARTING  128 sessions  0 leases  host room 100000/1000000 MiB"
    assert "  8 GPUs  " in drawn(full, columns=100)[0]


def test_a_gpu_that_lends_nothing_for_now_is_marked() -> None:
    """`!` in trouble, `z` left alone, `-` lends nothing although nothing is wrong."""
    state = node(
        gpu("SHM-0", trouble="its keeper ended", waits_for="it is quiesced"),
        gpu("SHM-1", quiet_seconds=5.0, waits_for="it is quiesced"),
        gpu("SHM-2", waits_for="a new process settles there"),
        gpu("SHM-3"),
    )
    lines = drawn(state)
    marks = [line_of(lines, f"SHM-{n} ").split()[1][0] for n in range(4)]
    assert marks[:3] == ["!", "z", "-"]
    assert marks[3] == "░"


def test_what_is_left_out_is_counted_with_the_command_that_shows_it() -> None:
    """Whoever holds most is shown, and nothing disappears silently."""
    lines = drawn(crowded(restarting=True), columns=80)
    first = next(number for number, line in enumerate(lines) if line.startswith("TENANT"))
    assert lines[first + 1].startswith("uid-1011/vllm-1011.service")
    assert lines[first + 2] == "... and 11 more (aquactl quota get)"
    assert sum(line.startswith(("warn", "note")) for line in lines) == 1
    assert "... and 3 more (aquactl status --json)" in lines
    tall = drawn(crowded(), columns=120, rows=60)
    assert "more (" not in "\n".join(tall)
    assert sum(line.startswith("uid-") for line in tall) == 12


def test_more_gpus_than_rows_are_counted_too() -> None:
    """A node of stand-ins may have 64; those in trouble are named below all the same."""
    gpus = [gpu(f"SHM-{number}") for number in range(63)]
    state = node(*gpus, gpu("SHM-63", trouble="its keeper does not answer"))
    lines = drawn(state, columns=80)
    assert len(lines) < ROWS
    assert any(line.startswith("... and ") and "(aquactl status --json)" in line for line in lines)
    assert "SHM-63 lends nothing" in "\n".join(lines)


@pytest.mark.parametrize(
    ("state", "words", "command"),
    [
        (node(gpu("SHM-1", trouble="its keeper ended")), "keeper ended", "journalctl -u"),
        (node(gpu("SHM-1", quarantined_bytes=MIB)), "1 MiB of SHM-1", "--state quarantined"),
        (
            node(gpu("SHM-1", quiet_seconds=540.0)),
            "SHM-1 is left alone for 540 s",
            "aquactl events",
        ),
        (
            node(gpu("SHM-1", waits_for="its lending policy is `never`", lending="never")),
            "policy is `never`",
            "--check-config",
        ),
        (node(restarting=True), "RESTARTING", "aquactl status"),
        (node(invariant_violations=1), "broke an invariant 1 times", "-g invariant"),
    ],
)
@pytest.mark.parametrize("is_worst", [True, False])
def test_whatever_is_unusual_is_seen_with_what_to_type(
    state: broker_pb2.GetStateReply, words: str, command: str, *, is_worst: bool
) -> None:
    """Also on eighty columns, and also when something else is worse."""
    if not is_worst:
        state.gpus.insert(0, gpu("SHM-0", trouble="MIG is enabled"))
    screen = "\n".join(drawn(state, columns=80))
    assert words in screen
    assert command in screen


def test_machines_get_all_that_is_to_be_said() -> None:
    """The verdict is the first of the findings, and none is left out."""
    found = json.loads(json.dumps(status_document(crowded(restarting=True))))
    assert found["verdict"] == found["findings"][0]
    levels = [one["level"] for one in found["findings"]]
    assert levels == ["fail", *["warn"] * 3, "ok"]


def test_colours_are_only_an_addition() -> None:
    """The same words in the same places with and without them."""
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    console.print(status_screen(crowded(), columns=80))
    assert isinstance(console.file, io.StringIO)
    coloured = console.file.getvalue()
    assert "\x1b[" in coloured
    plain = Console(file=io.StringIO(), width=80, force_terminal=True, no_color=True)
    plain.print(status_screen(crowded(), columns=80))
    assert isinstance(plain.file, io.StringIO)
    assert "\x1b[3" not in plain.file.getvalue()


def test_the_document_has_the_links_that_were_measured() -> None:
    """Each with its ends, and by how much it is slow."""
    link = broker_pb2.LinkState(
        link=broker_pb2.Link(source="SHM-0", target="SHM-1"),
        bytes_per_second=3e9,
        latency_seconds=1e-5,
        slow="2.0 times slower",
    )
    [found] = json.loads(json.dumps(status_document(node(links=[link]))))["links"]
    assert found == {
        "source": "SHM-0",
        "target": "SHM-1",
        "bytes_per_second": 3e9,
        "latency_seconds": 1e-5,
        "slow": "2.0 times slower",
    }
