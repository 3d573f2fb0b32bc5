"""Runs the steps one after another, keeps what they find, and prints it as a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.gpu.probe import table
from tests.gpu.probe.results import Results
from tests.gpu.probe.running import run_step, why_not_here
from tests.gpu.probe.steps import STEPS, Step


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; 0 unless it was asked wrongly."""
    chosen = _parser().parse_args(arguments)
    if chosen.list:
        print(*(f"{step.name:20} {step.question}" for step in STEPS), sep="\n")
        return 0
    try:
        results = Results(chosen.json)
    except ValueError as error:
        sys.stderr.write(f"probe: {error}\n")
        return 2
    reason = why_not_here()
    if reason:
        print(f"the probe was not run here: {reason}")
        return 0
    wanted = [step for step in STEPS if not chosen.step or step.name in chosen.step]
    _run(wanted, results, quick=chosen.quick, again=chosen.again)
    questions = {step.name: step.question for step in wanted}
    print(*table.lines(results.records, questions), sep="\n")
    return 0


def _run(wanted: Sequence[Step], results: Results, *, quick: bool, again: bool) -> None:
    for step in wanted:
        if not again and results.has(step.name, quick=quick):
            print(f"{step.name}: done before", flush=True)
            continue
        record = run_step(step.name, seconds=step.seconds, quick=quick)
        results.add(step.name, record)
        print(f"{step.name}: {record.outcome} in {record.seconds:.1f} s", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.probe", description=__doc__)
    parser.add_argument(
        "--step",
        action="extend",
        nargs="+",
        metavar="NAME",
        choices=[step.name for step in STEPS],
        help="only these; --list names them",
    )
    parser.add_argument("--json", type=Path, help="where the answers are kept; done steps stay")
    parser.add_argument("--again", action="store_true", help="also those that are done")
    parser.add_argument("--quick", action="store_true", help="small sizes: a rehearsal")
    parser.add_argument("--list", action="store_true", help="name the steps, and do nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
