"""What aquactl draws: one screen for a node, one table for its leases."""

from __future__ import annotations

import time
from collections.abc import Iterable

from aqua_protos import broker_pb2
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aqua_daemon.ctl.verdict import verdict

MIB = 2**20
BAR_CELLS = 32
UUID_CHARACTERS = 12  # "GPU-" and 8 digits tell the GPUs of a node apart; notes and JSON have all
# Shape as well as colour: the bar must read without colours.
OWN, LENT, QUARANTINED, FREE = ("█", "blue"), ("▓", "green"), ("▒", "red"), ("░", "dim")
LEVEL_STYLE = {"ok": "bold green", "warn": "bold yellow", "fail": "bold red"}


def status_screen(state: broker_pb2.GetStateReply) -> RenderableType:
    """The whole node on one screen."""
    parts: list[RenderableType] = [_headline(state), Text(), _gpus(state.gpus), _legend(), Text()]
    if any(gpu.model or gpu.warnings for gpu in state.gpus):
        parts += [_notes(state.gpus), Text()]
    if state.tenants:
        parts += [_tenants(state.tenants), Text()]
    if state.events:
        parts += [_events(state.events), Text()]
    judged = verdict(state)
    parts += [
        Text.assemble((judged.level.upper(), LEVEL_STYLE[judged.level]), "  ", judged.sentence),
        Text.assemble(("next  ", "dim"), judged.next_command),
    ]
    return Group(*parts)


def leases_table(leases: Iterable[broker_pb2.Lease]) -> Table:
    """A line per lease, the longest in its state first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("LEASE", "STATE", "LENDER", "BORROWER", "CLASS", "TENANT"):
        table.add_column(column, no_wrap=True)
    for column in ("PID", "MIB", "USED", "FOR"):
        table.add_column(column, justify="right", no_wrap=True)
    for lease in sorted(leases, key=lambda lease: -lease.state_seconds):
        table.add_row(
            lease.lease_id[:12],
            state_name(lease.state) + (f" ({lease.reason})" if lease.reason else ""),
            lease.lender_gpu,
            lease.borrower_gpu or "-",
            class_name(lease.safety_class),
            lease.tenant,
            str(lease.pid),
            str(lease.nbytes // MIB),
            f"{100 * lease.used_bytes // lease.nbytes}%" if lease.nbytes else "-",
            duration(lease.state_seconds),
        )
    return table


def event_line(event: broker_pb2.EventLine, *, now: float) -> str:
    """One event on one line, with the wall clock's time of it."""
    at = time.localtime(now - event.seconds_ago)
    return f"{time.strftime('%b %d %H:%M:%S', at)}  {event.text}"


def state_name(state: broker_pb2.LeaseState) -> str:
    """`LEASE_STATE_LEASED` as people say it."""
    return broker_pb2.LeaseState.Name(state).removeprefix("LEASE_STATE_").lower()


def class_name(safety_class: broker_pb2.SafetyClass) -> str:
    """`SAFETY_CLASS_STORE` as people say it."""
    return broker_pb2.SafetyClass.Name(safety_class).removeprefix("SAFETY_CLASS_").lower()


def duration(seconds: float) -> str:
    """Short, in the largest unit that leaves a figure: 4s, 12m, 3h, 2d."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= unit:
            return f"{int(seconds // unit)}{name}"
    return f"{int(seconds)}s"


def _headline(state: broker_pb2.GetStateReply) -> Text:
    return Text.assemble(
        ("AQUA ", "bold"),
        state.version,
        f"   up {duration(state.uptime_seconds)}",
        f"   {len(state.gpus)} GPUs, {state.sessions} sessions, {len(state.leases)} leases",
        f"   host room {state.host_reserved_bytes // MIB} of {state.host_pool_bytes // MIB} MiB",
    )


def _gpus(gpus: Iterable[broker_pb2.GpuState]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("GPU", no_wrap=True)
    table.add_column("MEMORY", no_wrap=True)
    for column in ("TOTAL", "OWN", "LENT", "QUAR", "FREE", "LENDABLE"):
        table.add_column(column, justify="right", no_wrap=True)
    for gpu in gpus:
        figures = (
            gpu.total_bytes,
            gpu.used_by_others_bytes,
            gpu.lent_bytes + gpu.returning_bytes,
            gpu.quarantined_bytes,
            gpu.free_bytes,
            gpu.lendable_bytes,
        )
        table.add_row(_gpu_name(gpu), _bar(gpu), *(str(figure // MIB) for figure in figures))
    return table


def _gpu_name(gpu: broker_pb2.GpuState) -> Text:
    short = gpu.gpu[:UUID_CHARACTERS]
    return Text(short + (" !" if gpu.trouble else ""), style="red" if gpu.trouble else "")


def _notes(gpus: Iterable[broker_pb2.GpuState]) -> Text:
    """What each GPU is, under its whole name, why it lends nothing, and what else is to be known."""
    notes = Text("MODELS", style="bold")
    for gpu in gpus:
        notes.append(f"\n{gpu.gpu}  ", style="not bold dim").append(gpu.model, style="not bold")
        if gpu.trouble:
            notes.append(f"\n  {gpu.trouble}", style="not bold red")
        for warning in gpu.warnings:
            notes.append(f"\n  {warning}", style="not bold yellow")
    return notes


def _bar(gpu: broker_pb2.GpuState) -> Text:
    """Own, lent, quarantined and free in proportion; what is there at all gets a cell."""
    shares = [
        (gpu.used_by_others_bytes, OWN),
        (gpu.lent_bytes + gpu.returning_bytes, LENT),
        (gpu.quarantined_bytes, QUARANTINED),
    ]
    bar, cells_left = Text(), BAR_CELLS
    for nbytes, (cell, style) in shares:
        cells = (
            min(cells_left, max(1, round(BAR_CELLS * nbytes / gpu.total_bytes))) if nbytes else 0
        )
        bar.append(cell * cells, style=style)
        cells_left -= cells
    return bar.append(FREE[0] * cells_left, style=FREE[1])


def _legend() -> Text:
    legend = Text("MiB   ", style="dim")
    for (cell, style), name in (
        (OWN, "own"),
        (LENT, "lent"),
        (QUARANTINED, "quarantined"),
        (FREE, "free"),
    ):
        legend.append(cell, style=style).append(f" {name}   ", style="dim")
    return legend


def _tenants(tenants: Iterable[broker_pb2.TenantState]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("TENANT", no_wrap=True)
    for column in ("SESSIONS", "LEASED MIB", "QUOTA MIB", "HOST MIB"):
        table.add_column(column, justify="right", no_wrap=True)
    for tenant in tenants:
        table.add_row(
            tenant.tenant,
            str(tenant.sessions),
            str(tenant.leased_bytes // MIB),
            str(tenant.quota_bytes // MIB),
            str(tenant.host_reserved_bytes // MIB),
        )
    return table


def _events(events: Iterable[broker_pb2.EventLine]) -> Text:
    lines = Text("LAST EVENTS", style="bold")
    for event in list(events)[-8:]:
        lines.append(f"\n{duration(event.seconds_ago):>4} ago  ", style="dim")
        lines.append(event.text, style="not bold")
    return lines
