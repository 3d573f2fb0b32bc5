"""The summary for people: a table, and the verdict in a sentence."""

from __future__ import annotations

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from aqua_client.demo.board import in_tiers
from aqua_client.demo.happenings import TakenBack
from aqua_client.demo.plan import mib
from aqua_client.demo.summary import Summary
from aqua_client.demo.timelines import drawn, percentiles

WIDTH = 112


def show(summary: Summary, console: Console) -> None:
    """Write a summary down."""
    faults = summary.faults()
    for line in drawn(summary.rush, width=min(WIDTH, console.width)) if summary.rush else ():
        console.print(line, highlight=False, soft_wrap=True)
    if console.is_terminal:
        console.print(_panel(summary, passed=not faults))
    else:
        for name, value in _rows(summary):
            console.print(f"{name:18}  {value}", highlight=False, soft_wrap=True)
    for fault in faults:
        console.print(f"[bold red]FAILED[/]  {fault}", highlight=False, soft_wrap=True)
    if not faults:
        said = "what waited on other GPUs came back as it went, and every answer is the same."
        console.print(f"[bold green]PASSED[/]  {said}", highlight=False, soft_wrap=True)


def _panel(summary: Summary, *, passed: bool) -> Panel:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _rows(summary):
        grid.add_row(name, value)
    style = "green" if passed else "red"
    title = f"[bold {style}]{'PASSED' if passed else 'FAILED'}[/]"
    return Panel(grid, title=title, border_style=style, padding=(1, 2))


def _rows(summary: Summary) -> list[tuple[str, str]]:
    lenders = ", ".join(f"{gpu} {mib(nbytes)}" for gpu, nbytes in sorted(summary.lenders.items()))
    return [
        ("conversations", _conversations(summary)),
        ("resident KV, peak", _resident(summary)),
        ("parked", f"{in_tiers(summary.parked_bytes)}   ({summary.parks} times)"),
        ("fetched", f"{in_tiers(summary.fetched_bytes)}   ({summary.fetches} times)"),
        ("to host because of", _reasons(summary.fallbacks)),
        ("lent at most", lenders or "nothing"),
        ("revokes served", _revokes(summary)),
        ("taken back", _taken_back(summary.taken_back)),
        ("outputs equal", _outputs(summary)),
        ("parked bytes equal", _bytes(summary)),
        ("rush", _rush(summary)),
        ("seconds", _seconds(summary)),
    ]


def _conversations(summary: Summary) -> str:
    return f"{summary.conversations}, {summary.turns} turns, {summary.tokens} tokens answered"


def _resident(summary: Summary) -> str:
    return (
        f"{mib(summary.peak_resident_kv_bytes)} of a budget of {mib(summary.kv_budget_bytes)}; "
        f"all conversations need {mib(summary.all_kv_bytes)}"
    )


def _reasons(fallbacks: dict[str, int]) -> str:
    """Why tensors went to host memory, in words."""
    return ", ".join(f"{reason} {count}x" for reason, count in fallbacks.items()) or "nothing"


def _revokes(summary: Summary) -> str:
    return f"{summary.revokes_served}, {mib(summary.evacuated_bytes)} evacuated"


def _taken_back(taken: TakenBack | None) -> str:
    if taken is None:
        return "nothing"
    quarantined = f", {mib(taken.quarantined_bytes)} quarantined" if taken.quarantined_bytes else ""
    return (
        f"{taken.gpu}: its owner had a burst and asked for {mib(taken.asked_bytes)}, "
        f"{mib(taken.freed_bytes)} freed in {taken.seconds:.2f} s{quarantined}; "
        f"{mib(taken.lent_again_bytes)} lent again afterwards"
    )


def _outputs(summary: Summary) -> str:
    if summary.differing_outputs:
        return f"[red]no: {len(summary.differing_outputs)} conversations differ[/]"
    return (
        f"yes: {summary.tokens} of {summary.tokens} tokens as in the run that never parked, "
        f"{summary.threads} thread each"
    )


def _bytes(summary: Summary) -> str:
    compared = summary.tensors_compared
    if summary.tensors_differing or not compared:
        return f"[red]no: {summary.tensors_differing} of {compared} tensors differ[/]"
    return f"yes: {compared} tensors came back as they went"


def _rush(summary: Summary) -> str:
    if not summary.rush:
        return f"left out: {summary.rush_left_out}"
    plain, fair = (percentiles(one.first_tokens)[1] for one in summary.rush)
    return (
        f"{len(summary.rush[0].came)} requests at once: p99 of the first token {plain:.2f} s first "
        f"come, first served, {fair:.2f} s in fair slices over leases"
    )


def _seconds(summary: Summary) -> str:
    return (
        f"{summary.seconds:.1f} (reference {summary.reference_seconds:.1f}, "
        f"parking {summary.parking_seconds:.1f})"
    )
