"""What aquactl draws of leases, events and durations. The screen of a node is `status_screen`."""

from __future__ import annotations

import time
from collections.abc import Iterable

from aqua_protos import broker_pb2
from rich.table import Table

MIB = 2**20


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
