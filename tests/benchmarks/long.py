"""`make check-long`, the part that is tests: runs what is marked `long` and keeps how it ended."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import pytest

from tests.benchmarks import machine


class _Outcomes:
    """How each test ended, and in how many seconds."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, object]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test's call has ended, or its set-up or clearing away has failed."""
        if report.when == "call" or report.failed:
            self.tests[report.nodeid] = {
                "outcome": report.outcome,
                "seconds": round(report.duration, 1),
            }


def main() -> int:
    """Run them, keep the result also when some fail; pytest's exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.long", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the result is kept")
    parser.add_argument("words", nargs="*", help="passed on to pytest")
    chosen = parser.parse_args()
    os.environ["AQUA_LONG"] = "1"
    outcomes = _Outcomes()
    document = machine.description()
    start = time.monotonic()
    status = pytest.main(["-m", "long", *chosen.words], plugins=[outcomes])
    document["seconds"] = round(time.monotonic() - start, 1)
    failed = [name for name, test in outcomes.tests.items() if test["outcome"] != "passed"]
    document |= {"failures": failed, "tests": outcomes.tests}
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(document, indent=2) + "\n")
    return int(status)


if __name__ == "__main__":
    raise SystemExit(main())
