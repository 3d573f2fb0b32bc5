"""One line of doctor's: a machine that differs from a healthy one, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aqua_daemon.ctl.doctor.findings import Level
from aqua_daemon.ctl.doctor.machine import Machine
from tests.ctl.machines import HEALTHY


@dataclass(frozen=True)
class Case:
    """A machine that differs from a healthy one in *changes*."""

    check: str
    level: Level
    says: str
    advises: str
    changes: dict[str, object]

    @property
    def machine(self) -> Machine:
        return replace(HEALTHY, **self.changes)  # type: ignore[arg-type]  # names of its fields


def ok(check: str, says: str, **changes: object) -> Case:
    return Case(check, Level.OK, says, "", changes)


def warn(check: str, says: str, advises: str, **changes: object) -> Case:
    return Case(check, Level.WARN, says, advises, changes)


def fail(check: str, says: str, advises: str, **changes: object) -> Case:
    return Case(check, Level.FAIL, says, advises, changes)
