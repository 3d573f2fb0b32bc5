"""Everything that wants a GPU, on a machine that has one: checks, the probe's questions, costs.

    python -m tests.gpu --json FILE [--budget SECONDS]

From a bare checkout, with PYTHONPATH=.:protos and without a network. Resumes: what FILE has an answer
to is not run again, so a second call goes on where the first one, or its budget, ended; a benchmark
that was cut short goes on behind the rows that it has. Beside FILE a
folder `FILE.logs` keeps what each task said.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tests.gpu.probe import table
from tests.gpu.probe.results import Results
from tests.gpu.probe.running import ANSWERED, CUT, TIMED_OUT, Record, run_step
from tests.gpu.readiness import why_not_here
from tests.gpu.tasks import BENCH, MODULES, TASKS, Task

LEAST_SECONDS = 15.0  # nothing worth having is done in less


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; 1 if anything was found wrong."""
    chosen = _parser().parse_args(arguments)
    if chosen.list:
        print(*(f"{task.kind:6} {task.name:18} {task.question}" for task in TASKS), sep="\n")
        return 0
    reason = why_not_here()
    if reason:
        print(f"not run here: {reason}")
        return 0
    try:
        results = Results(chosen.json)
    except ValueError as error:
        sys.stderr.write(f"tests.gpu: {error}\n")
        return 2
    wanted = [
        task
        for task in TASKS
        if task.kind in chosen.only and (not chosen.task or task.name in chosen.task)
    ]
    asked = [task for task in wanted if chosen.again or not results.has(task.name, quick=False)]
    run(asked, results, logs=chosen.json, ends_at=time.monotonic() + chosen.budget)
    print(*table.lines(results.records, {task.name: task.question for task in wanted}), sep="\n")
    missing = [task.name for task in wanted if not results.has(task.name, quick=False)]
    if missing:
        print(f"not run yet, call again: {', '.join(missing)}")
    return int(any(one.outcome not in {ANSWERED, CUT} for one in results.records.values()))


def run(tasks: Sequence[Task], results: Results, *, logs: Path | None, ends_at: float) -> None:
    """Run them and keep what they find, as long as there is time."""
    for batch in _batches(tasks):
        left = ends_at - time.monotonic()
        if left < LEAST_SECONDS:
            return
        had = {task.name: results.begun(task.name) for task in batch}
        with ThreadPoolExecutor(len(batch)) as pool:
            records = pool.map(lambda task: _run(task, left, logs, had[task.name]), batch)  # noqa: B023 - ends here
            for task, record in zip(batch, records, strict=True):
                kept = _cut(task, record) if record.outcome == TIMED_OUT else record
                print(f"{task.name}: {kept.outcome} in {record.seconds:.1f} s", flush=True)
                if kept.outcome != TIMED_OUT or record.seconds < left - 1:
                    results.add(task.name, kept.after(had[task.name]))


def _cut(task: Task, record: Record) -> Record:
    """A benchmark that has found something goes on in the next call."""
    return replace(record, outcome=CUT) if task.kind == BENCH and record.rows else record


def _run(task: Task, left: float, logs: Path | None, had: Record | None) -> Record:
    log = None if logs is None else logs.with_name(f"{logs.name}.logs") / f"{task.name}.log"
    seconds = min(task.seconds, left)
    known = [] if had is None else [row["question"] for row in had.rows]
    module = MODULES[task.kind]
    return run_step(task.name, seconds=seconds, quick=False, module=module, log=log, known=known)


def _batches(tasks: Sequence[Task]) -> Iterator[list[Task]]:
    """Neighbours that may run beside each other are together."""
    together: list[Task] = []
    for task in tasks:
        if task.alone and together:
            yield together
            together = []
        if task.alone:
            yield [task]
        else:
            together.append(task)
    if together:
        yield together


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--json", type=Path, help="where the answers are kept, and found again")
    kinds = list(MODULES)
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds, help="of this kind")
    parser.add_argument("--task", nargs="+", metavar="NAME", help="only these; --list names them")
    parser.add_argument(
        "--budget", type=float, default=float("inf"), metavar="SECONDS", help="end by then"
    )
    parser.add_argument("--again", action="store_true", help="also what has been answered")
    parser.add_argument("--list", action="store_true", help="name all tasks, and run none")
    return parser


if __name__ == "__main__":
    sys.exit(main())
