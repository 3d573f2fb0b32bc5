"""`python -m tests.simulation`: run many seeds, or one again, and say what happened."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count, islice
from pathlib import Path

from tests.simulation.elastic.run import simulate_elastic
from tests.simulation.run import Outcome, simulate

_STEPS = 500
_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What many runs came to."""

    seeds: int
    steps: int
    seconds: float
    counts: Counter[str]
    failures: tuple[int, ...]
    jobs: int

    def as_json(self) -> str:
        """The record that is kept of a long run."""
        record = {
            "date": datetime.now(UTC).date().isoformat(),
            "seeds": self.seeds,
            "steps": self.steps,
            "seconds": round(self.seconds, 1),
            "failures": len(self.failures),
            "failing_seeds": list(self.failures),
            "jobs": self.jobs,
            "events": self.counts["events"],
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "counts": dict(sorted(self.counts.items())),
        }
        return json.dumps(record, indent=2) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 if any promise was broken."""
    asked = _parser().parse_args(arguments)
    simulate_one = simulate_elastic if asked.elastic else simulate
    steps = asked.steps or (_ROUNDS if asked.elastic else _STEPS)
    seeds: Iterable[int] = [asked.seed] if asked.seed is not None else range(asked.seeds)
    if asked.events:
        seeds = count()
    run = partial(simulate_one, steps=steps)
    summary = run_seeds(
        seeds, steps=steps, jobs=asked.jobs, lines=asked.story, events=asked.events, run=run
    )
    _print_summary(summary)
    if asked.json is not None:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(summary.as_json())
    return 1 if summary.failures else 0


def run_seeds(
    seeds: Iterable[int],
    *,
    steps: int,
    jobs: int = 1,
    lines: int = 20,
    events: int = 0,
    run: Callable[[int], Outcome] | None = None,
) -> Summary:
    """Run each of *seeds*, or until so many *events*, telling the story of those that fail."""
    started = time.monotonic()
    counts: Counter[str] = Counter()
    failures: list[int] = []
    number = 0
    with closing(_outcomes(seeds, run or partial(simulate, steps=steps), jobs)) as outcomes:
        for outcome in outcomes:
            number += 1
            counts.update(outcome.counts)
            if outcome.failure:
                failures.append(outcome.seed)
                _print_failure(outcome, lines)
            if events and counts["events"] >= events:
                break
    return Summary(
        seeds=number,
        steps=steps,
        seconds=time.monotonic() - started,
        counts=counts,
        failures=tuple(failures),
        jobs=jobs,
    )


def _outcomes(seeds: Iterable[int], run: Callable[[int], Outcome], jobs: int) -> Generator[Outcome]:
    if jobs == 1:
        for seed in seeds:
            yield run(seed)
        return
    with ProcessPoolExecutor(jobs) as pool:
        seeds = iter(seeds)
        running = deque(pool.submit(run, seed) for seed in islice(seeds, 4 * jobs))
        try:
            while running:
                yield running.popleft().result()
                running.extend(pool.submit(run, seed) for seed in islice(seeds, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def _print_failure(outcome: Outcome, lines: int) -> None:
    print(f"seed {outcome.seed} failed: {outcome.failure}")
    for line in outcome.story[-lines:]:
        print(f"    {line}")
    print(outcome.where, end="")
    print(f"  again: {outcome.replay}", flush=True)


def _print_summary(summary: Summary) -> None:
    for what, number in sorted(summary.counts.items()):
        print(f"  {number:>10,}  {what}")
    rate = summary.counts["events"] / max(summary.seconds, 1e-9)
    print(
        f"{summary.seeds} seeds x {summary.steps} steps: {summary.counts['events']:,} events in "
        f"{summary.seconds:.1f} s ({rate:,.0f}/s with the oracle), {len(summary.failures)} failures"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seeds", type=int, default=200, help="run seeds 0 to N-1")
    which.add_argument("--seed", type=int, help="run this one seed again")
    which.add_argument("--events", type=int, default=0, help="run seeds until so many events")
    parser.add_argument(
        "--elastic", action="store_true", help="nodes whose load breathes, and fair shares"
    )
    parser.add_argument(
        "--steps",
        type=int,
        help=f"acts and faults in each run ({_STEPS}), or storms of an elastic one ({_ROUNDS})",
    )
    parser.add_argument("--story", type=int, default=20, help="lines told of a failed run")
    parser.add_argument("--jobs", type=int, default=1, help="processes to run seeds in")
    parser.add_argument("--json", type=Path, help="keep the summary there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
