"""One line of doctor's report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How bad it is; the worst is the highest."""

    OK = 0
    WARN = 1
    FAIL = 2

    @property
    def word(self) -> str:
        """As people and machines read it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found of one thing, and what to do about it."""

    check: str
    level: Level
    sentence: str
    remedy: str = ""  # empty only where all is well


def ok(check: str, sentence: str) -> Finding:
    """All is well."""
    return Finding(check=check, level=Level.OK, sentence=sentence)


def warn(check: str, sentence: str, remedy: str) -> Finding:
    """It works, and less well or less surely than it could."""
    return Finding(check=check, level=Level.WARN, sentence=sentence, remedy=remedy)


def fail(check: str, sentence: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(check=check, level=Level.FAIL, sentence=sentence, remedy=remedy)


def worst(findings: Iterable[Finding]) -> Level:
    """The level of the whole report."""
    return max((finding.level for finding in findings), default=Level.OK)
