"""A mutant: one line of one file replaced, in a copy of the tree."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_TREE = ("aqua_client", "aqua_daemon", "protos", "tests", "pyproject.toml")


class DoesNotApply(ValueError):
    """The text to replace is not there exactly once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One fault, and the tests of which at least one must fail with it."""

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]

    def source(self) -> str:
        """The file with the fault in it.

        Raises:
            DoesNotApply: the text to replace does not occur exactly once.
        """
        text = (ROOT / self.path).read_text()
        found = text.count(self.old)
        if found != 1:
            msg = f"{self.name}: {self.old!r} occurs {found} times in {self.path}"
            raise DoesNotApply(msg)
        return text.replace(self.old, self.new)


def copy_tree(where: Path) -> None:
    """All that tests need."""
    for name in _TREE:
        source, target = ROOT / name, where / name
        if source.is_dir():
            unwanted = shutil.ignore_patterns("results", ".hypothesis")
            shutil.copytree(source, target, ignore=unwanted)
        else:
            shutil.copy2(source, target)


def apply(mutant: Mutant, where: Path) -> None:
    """Put the fault into the copy of the tree at *where*."""
    (where / mutant.path).write_text(mutant.source())
