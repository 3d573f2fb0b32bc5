"""What aquactl draws of leases, events and durations. The screen of a node is `status_screen`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from aqua_protos import broker_pb2
from rich.text import Text

from aqua_daemon.ctl.aligning import aligned, clipped, short_gpus

MIB = 2**20
COLUMNS = 160  # where nothing is known of the reader
FIGURES = ("PID", "MIB", "USED", "FOR")
HEADS = ("LEASE", "STATE", "LENDER", "BORROWER", "CLASS", "TENANT", *FIGURES)
EXPENDABLE = ("CLASS", "BORROWER", "USED")  # in this order, where it is narrow
TENANT_CELLS, FEWEST_TENANT_CELLS = 20, 6  # rather than fewer a column goes


def leases_table(leases: Iterable[broker_pb2.Lease], *, columns: int = COLUMNS) -> Text:
    """A line per lease, the longest in its state first.

    Where not all of it fits, names are shortened and what matters least is left out; figures and
    whoever holds the lease never are.
    """
    found = [_cells(lease) for lease in sorted(leases, key=lambda lease: -lease.state_seconds)]
    lines = _lease_lines(found, HEADS)
    tenant_cells = max(len(cells["TENANT"]) for cells in found)
    for left_out in range(len(EXPENDABLE) + 1):
        if lines[0].cell_len <= columns:
            break
        heads = [head for head in HEADS if head not in EXPENDABLE[:left_out]]
        too_wide = _lease_lines(found, heads, is_short=True)[0].cell_len - columns
        least = TENANT_CELLS if left_out < len(EXPENDABLE) else FEWEST_TENANT_CELLS
        shown = max(least, tenant_cells - max(0, too_wide))
        lines = _lease_lines(found, heads, is_short=True, tenant_cells=shown)
    lines[0].stylize("bold")
    return Text("\n").join(lines)


def _lease_lines(
    found: Sequence[Mapping[str, str]],
    heads: Sequence[str],
    *,
    is_short: bool = False,
    tenant_cells: int = COLUMNS,
) -> list[Text]:
    def said(head: str, cell: str) -> str:
        cell = clipped(cell, tenant_cells if head == "TENANT" else COLUMNS)
        return short_gpus(cell) if is_short else cell

    rows = [[said(head, cells[head]) for head in heads] for cells in found]
    return aligned([heads, *rows], left=len(heads) - sum(head in FIGURES for head in heads))


def _cells(lease: broker_pb2.Lease) -> dict[str, str]:
    return {
        "LEASE": lease.lease_id[:12],
        "STATE": state_name(lease.state) + (f" ({lease.reason})" if lease.reason else ""),
        "LENDER": lease.lender_gpu,
        "BORROWER": lease.borrower_gpu or "-",
        "CLASS": class_name(lease.safety_class),
        "TENANT": lease.tenant,
        "PID": str(lease.pid),
        "MIB": str(lease.nbytes // MIB),
        "USED": f"{100 * lease.used_bytes // lease.nbytes}%" if lease.nbytes else "-",
        "FOR": duration(lease.state_seconds),
    }


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
