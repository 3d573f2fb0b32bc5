"""Every check over one record, and how the report looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aqua_daemon.ctl.doctor import (
    daemon_checks,
    gpu_checks,
    host_checks,
    link_checks,
    place_checks,
)
from aqua_daemon.ctl.doctor.findings import Finding, Level, worst
from aqua_daemon.ctl.doctor.machine import Machine

SCHEMA = 1
CHECKS: tuple[Callable[[Machine], Iterator[Finding]], ...] = (
    host_checks.check_kernel,
    host_checks.check_shared_memory,
    host_checks.check_memory_files,
    host_checks.check_processes_seen,
    host_checks.check_cgroups,
    place_checks.check_place,
    gpu_checks.check_driver,
    gpu_checks.check_gpus,
    link_checks.check_peers,
    link_checks.check_sharing,
    daemon_checks.check_units,
    daemon_checks.check_socket,
    daemon_checks.check_group,
    daemon_checks.check_daemon,
    daemon_checks.check_open_files,
    daemon_checks.check_keepers,
    daemon_checks.check_metrics,
    daemon_checks.check_node,
)
_STYLES = {Level.OK: "green", Level.WARN: "bold yellow", Level.FAIL: "bold red"}


def diagnosed(machine: Machine) -> tuple[Finding, ...]:
    """What every check has to say, in the order in which things depend on each other."""
    return tuple(finding for check in CHECKS for finding in check(machine))


def report(findings: Iterable[Finding]) -> RenderableType:
    """A line per finding, with its remedy below it, and the sum."""
    findings = tuple(findings)
    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True)
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for finding in findings:
        words = Text(finding.sentence)
        if finding.remedy:
            words.append(f"\n-> {finding.remedy}", style="cyan")
        level = Text(finding.level.word, style=_STYLES[finding.level])
        lines.add_row(level, Text(finding.check, style="bold"), words)
    counts = {level: sum(one.level is level for one in findings) for level in Level}
    total = worst(findings)
    summary = Text.assemble(
        (total.word.upper(), _STYLES[total]),
        "  " + ", ".join(f"{count} {level.word}" for level, count in counts.items()),
    )
    return Group(lines, summary)


def report_document(findings: Iterable[Finding]) -> dict[str, object]:
    """The same for machines."""
    findings = tuple(findings)
    return {
        "schema": SCHEMA,
        "level": worst(findings).word,
        "findings": [
            {
                "check": finding.check,
                "level": finding.level.word,
                "sentence": finding.sentence,
                "remedy": finding.remedy,
            }
            for finding in findings
        ],
    }
