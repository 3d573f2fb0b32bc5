"""Running tests on a copy of the tree, with a fault or without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutant import Mutant, apply, copy_tree

LIMIT_SECONDS = 180.0
# What pytest ends with; below 0 a signal has ended it, which a fault may well bring about, and anything
# else above 0 is a mistake of the table.
_TESTS_FAILED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came of one mutant, or of none."""

    name: str
    is_caught: bool
    seconds: float
    why: str  # the line that says which test failed
    was_tried: bool = True  # False: its tests could not be run, which is a mistake of the table

    @property
    def verdict(self) -> str:
        """In a word."""
        if not self.was_tried:
            return "BROKEN"
        return "caught" if self.is_caught else "SURVIVED"


def try_all(mutants: Sequence[Mutant], *, jobs: int) -> Iterator[Tried]:
    """Try each, so many at a time, in their order."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(try_mutant, mutants)


def try_mutant(mutant: Mutant) -> Tried:
    """Run the mutant's tests with its fault."""
    mutant.source()
    with tempfile.TemporaryDirectory(prefix="aqua-mutant-") as directory:
        where = Path(directory)
        copy_tree(where)
        apply(mutant, where)
        return _run(mutant.name, mutant.tests, where)


def try_without(tests: Iterable[str]) -> Tried:
    """Run *tests* on the code as it is: none may fail."""
    with tempfile.TemporaryDirectory(prefix="aqua-mutant-") as directory:
        where = Path(directory)
        copy_tree(where)
        return _run("unmutated", tuple(dict.fromkeys(tests)), where)


def _run(name: str, tests: Sequence[str], where: Path) -> Tried:
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    path = f"{where}{os.pathsep}{where / 'protos'}"
    try:
        ended = subprocess.run(
            command,
            cwd=where,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            check=False,
            text=True,
            timeout=LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Tried(name=name, is_caught=True, seconds=LIMIT_SECONDS, why="it hung")
    lines = [*ended.stderr.splitlines(), *ended.stdout.strip().splitlines()] or [""]
    why = [line for line in lines if line.startswith(("FAILED tests", "ERROR"))]
    if ended.returncode < 0:
        why = [f"it was ended by {signal.Signals(-ended.returncode).name}"]
    return Tried(
        name=name,
        is_caught=ended.returncode < 0 or ended.returncode == _TESTS_FAILED,
        seconds=time.monotonic() - started,
        why=why[0] if why else lines[-1],
        was_tried=ended.returncode <= _TESTS_FAILED,
    )
