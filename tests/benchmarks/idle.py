"""What daemon and keeper cost while nothing is asked of them: alone, and with sessions attached."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from tests.benchmarks.crowd import crowd
from tests.benchmarks.figure import Figure
from tests.benchmarks.processes import Cost
from tests.nodes import MIB, Node

SUBJECT = "idle"
SECONDS = 21.0  # two terms, so six keepalives a session
SETTLE_SECONDS = 2.0
SESSIONS, PROCESSES = 200, 4
CPU_PERCENT = 1.0  # of one core
RSS_MIB = 150.0


def measure(node: Node) -> Iterator[Figure]:
    """Measure a running node."""
    yield from _costs(node, "no session")
    with crowd(node, sessions=SESSIONS, processes=PROCESSES):
        yield from _costs(node, f"{SESSIONS} sessions")


def _costs(node: Node, beside: str) -> Iterator[Figure]:
    pids = {"daemon": node.pid, "keeper": node.keeper_pid()}
    _wait(SETTLE_SECONDS)
    before = {name: Cost.of(pid) for name, pid in pids.items()}
    _wait(SECONDS)
    for name, pid in pids.items():
        cost = Cost.of(pid)
        used = cost.cpu_seconds - before[name].cpu_seconds
        yield Figure(
            subject=SUBJECT,
            name=f"{name}, {beside}, CPU",
            value=100 * used / SECONDS,
            unit="% of a core",
            at_most=CPU_PERCENT,
        )
        yield Figure(
            subject=SUBJECT,
            name=f"{name}, {beside}, memory",
            value=cost.rss_bytes / MIB,
            unit="MiB resident",
            at_most=RSS_MIB,
        )


def _wait(seconds: float) -> None:
    """It is time itself that is measured here."""
    threading.Event().wait(seconds)
