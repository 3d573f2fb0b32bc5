"""Runs a step as a child with a deadline; whatever it comes to is a record.

A step's own children are in its process group, which is ended with it. Knows nothing of CUDA: the
process that runs the steps must outlive every fault of a driver.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

REPOSITORY = Path(__file__).parents[3]
MODULE = "tests.gpu.probe.stepping"
ANSWERED, CRASHED, TIMED_OUT = "answered", "crashed", "timed out"
CUT = "cut short"  # by its time: what is missing is asked by the next call
LAST_WORDS = 200
UNKILLABLE_SECONDS = 10.0  # a process in an endless driver call can't be waited for

_ASK_FOR_A_DEVICE = """
from tests.gpu.probe.driver import DriverError, device_count
try:
    count = device_count()
except DriverError as error:
    raise SystemExit(f"the driver says {error}")
raise SystemExit(0 if count else "the driver sees no device")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a step came to."""

    outcome: str
    seconds: float
    quick: bool
    rows: list[dict[str, str]] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)
    last_words: str = ""  # of a crash: the error, without where it was raised

    def after(self, had: Record | None) -> Record:
        """Together with what was found before it was cut short; None: nothing."""
        if had is None:
            return self
        return replace(
            self,
            seconds=round(had.seconds + self.seconds, 2),
            rows=[*had.rows, *self.rows],
            figures={**had.figures, **self.figures},
        )


def child_environment() -> dict[str, str]:
    """This checkout beside whatever the caller put on the path, which comes first."""
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = [*given, str(REPOSITORY), str(REPOSITORY / "protos")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def why_not_here() -> str:
    """Why nothing can be asked on this machine; empty if it can."""
    words = [sys.executable, "-c", _ASK_FOR_A_DEVICE]
    try:
        asked = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=REPOSITORY,
            env=child_environment(),
        )
    except subprocess.TimeoutExpired:
        return "the driver does not answer"
    if asked.returncode == 0:
        return ""
    return (asked.stderr.strip().splitlines() or ["the driver crashed"])[-1]


def run_step(
    name: str,
    *,
    seconds: float,
    quick: bool,
    module: str = MODULE,
    more: Mapping[str, str] | None = None,
    log: Path | None = None,
    known: Sequence[str] = (),
) -> Record:
    """Run it to its end or its deadline; never raises for what the step does.

    *log* keeps what it says on standard error. *known* are questions that it need not answer again.
    """
    words = [sys.executable, "-m", module, name, *(["--quick"] if quick else [])]
    words += ["--known", *known] if known else []
    begun = time.monotonic()
    with tempfile.TemporaryFile() as out, _errors(log) as errors:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            cwd=REPOSITORY,
            env={**child_environment(), **(more or {})},
            start_new_session=True,
        )
        outcome = _wait(process, seconds)
        out.seek(0)
        errors.seek(0)
        said, complained = (
            out.read().decode(errors="replace"),
            errors.read().decode(errors="replace"),
        )
    rows, figures = _parsed(said)
    if outcome != ANSWERED:
        sys.stderr.write("\n".join(complained.splitlines()[-12:]) + "\n")
    return Record(
        outcome=outcome,
        seconds=round(time.monotonic() - begun, 2),
        quick=quick,
        rows=rows,
        figures=figures,
        last_words="" if outcome == ANSWERED else _last_words(process, complained),
    )


def _errors(log: Path | None) -> IO[bytes]:
    if log is None:
        return tempfile.TemporaryFile()
    log.parent.mkdir(parents=True, exist_ok=True)
    return log.open("w+b")


def _wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    try:
        outcome = ANSWERED if process.wait(seconds) == 0 else CRASHED
    except subprocess.TimeoutExpired:
        outcome = TIMED_OUT
    with suppress(ProcessLookupError):  # also what a step that ended well left behind
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(UNKILLABLE_SECONDS)
    return outcome


def _parsed(said: str) -> tuple[list[dict[str, str]], dict[str, object]]:
    rows: list[dict[str, str]] = []
    figures: dict[str, object] = {}
    for line in said.splitlines():
        with suppress(ValueError):  # half a line of a process that was killed
            document = json.loads(line)
            if "row" in document:
                rows.append(document["row"])
            figures |= document.get("figures", {})
    return rows, figures


def _last_words(process: subprocess.Popen[bytes], complained: str) -> str:
    status = process.returncode
    if status is not None and status < 0:
        return f"ended by {signal.Signals(-status).name}"
    lines = complained.strip().splitlines()
    return lines[-1].replace(str(REPOSITORY), ".")[:LAST_WORDS] if lines else "said nothing"
