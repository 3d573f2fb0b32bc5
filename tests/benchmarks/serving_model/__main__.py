"""Replays a trace, or a made-up one, under every policy; prints tables and keeps them as JSON."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.benchmarks import machine
from tests.benchmarks.serving_model import arrivals, figures
from tests.benchmarks.serving_model.arrivals import Arrival
from tests.benchmarks.serving_model.engine import GIB, Engine, Hardware
from tests.benchmarks.serving_model.figures import Summary
from tests.benchmarks.serving_model.policies import FCFS, POLICIES, Policy

SECONDS = 600.0  # of the trace, around its highest burst
SEED = 1
BURSTS = (25, 50, 100)
BURST_SECONDS, BURST_BASE = 60.0, 2.0  # of a steady stream, in requests a second


def main() -> None:
    """All that is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.serving_model", description=__doc__
    )
    parser.add_argument("--trace", type=Path, help="TIMESTAMP,ContextTokens,GeneratedTokens")
    parser.add_argument("--speed", type=float, nargs="*", default=[1.0, 2.0, 4.0])
    parser.add_argument("--kv-gib", type=float, default=4.0, help="of KV cache")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the trace")
    parser.add_argument("--bursts", type=int, nargs="*", default=BURSTS, help="requests at once")
    parser.add_argument("--jobs", type=int, default=1, help="policies at the same time")
    parser.add_argument("--json", type=Path, help="where the figures are kept")
    chosen = parser.parse_args()
    hardware = Hardware(kv_bytes=int(chosen.kv_gib * GIB))
    source = "a trace that was read" if chosen.trace else f"made up, seed {SEED}"
    document: dict[str, object] = {
        **machine.description(),
        "level": "a model, not a measurement",
        "source": source,
        "kv_bytes": hardware.kv_bytes,
    }
    print(f"a model, not a measurement; {source}; {chosen.kv_gib:g} GiB of KV cache")
    for name, coming in _scenarios(chosen):
        start = time.monotonic()
        summaries = compare(coming, hardware, policies=POLICIES, jobs=chosen.jobs)
        print("", f"## {name}: {len(coming)} requests", "", sep="\n")
        print(*figures.table(summaries, beside=FCFS), sep="\n", flush=True)
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
        document[name] = {"requests": len(coming), "policies": figures.document(summaries)}
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(document, indent=2) + "\n")


def compare(
    coming: Sequence[Arrival],
    hardware: Hardware,
    *,
    policies: Sequence[Policy],
    jobs: int = 1,
) -> dict[str, Summary]:
    """The same arrivals under each policy."""
    if jobs == 1:
        return {one.name: replay(one, coming, hardware) for one in policies}
    with ProcessPoolExecutor(jobs) as pool:
        asked = {one.name: pool.submit(replay, one, coming, hardware) for one in policies}
        return {name: one.result() for name, one in asked.items()}


def replay(policy: Policy, coming: Sequence[Arrival], hardware: Hardware) -> Summary:
    """One of them."""
    engine = Engine(
        hardware, policy.scheduler(hardware), policy.swap(hardware), admits=policy.admits
    )
    return Summary.of(engine, engine.replay(coming))


def _scenarios(chosen: argparse.Namespace) -> Iterator[tuple[str, list[Arrival]]]:
    hour = arrivals.read(chosen.trace) if chosen.trace else arrivals.an_hour(SEED)
    height = arrivals.around_the_highest_burst(hour, chosen.seconds)
    for speed in chosen.speed:
        yield f"{speed:g} times real speed", arrivals.faster(height, speed)
    for size in chosen.bursts:
        burst = arrivals.a_burst(size, per_second=BURST_BASE, seconds=BURST_SECONDS, seed=SEED)
        yield f"{size} at once", burst


if __name__ == "__main__":
    main()
