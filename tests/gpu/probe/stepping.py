"""One step in a process of its own: its findings go to standard output, line by line.

python -m tests.gpu.probe.stepping NAME [--quick]
"""

from __future__ import annotations

import argparse

from tests.gpu.probe import stage
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.plan import QUICK, WHOLE
from tests.gpu.probe.steps import STEPS


def main() -> None:
    """Ask one question."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.probe.stepping")
    parser.add_argument("name", choices=[step.name for step in STEPS])
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    (step,) = (step for step in STEPS if step.name == chosen.name)
    step.load()(QUICK if chosen.quick else WHOLE, stage.devices(), Findings())


if __name__ == "__main__":
    main()
