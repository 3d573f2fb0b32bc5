"""`make bench`: starts a node, measures, prints the table and keeps the figures as JSON."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.benchmarks import (
    adapters,
    books,
    deaths,
    elastic,
    evacuations,
    figure,
    fragmentation,
    grants,
    idle,
    machine,
    paging,
    pools,
    pushes,
    small,
)
from tests.benchmarks.figure import Figure
from tests.nodes import MIB, Node, running_node

GPUS = 8
GPU_BYTES = 1024 * MIB
FAILED = "the rest"
FRAGMENTATION = "fragmentation"  # of numbers alone: it has a table of its own

# Each is measured against a node of its own, so none finds what another has left.
SUBJECTS: Mapping[str, Callable[[Node], Iterator[Figure]]] = {
    "paging": lambda node: paging.measure(node.socket),
    "pools": lambda node: pools.measure(node.socket),
    "small": lambda node: small.measure(node.socket),
    "adapters": lambda node: adapters.measure(node.socket),
    "grants": grants.measure,
    "deaths": deaths.measure,
    "elastic": lambda _node: elastic.measure(),
    "evacuations": evacuations.measure,
    "pushes": lambda _node: pushes.measure(),
    "idle": idle.measure,
    "core": lambda _node: books.measure(),
}


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, help="where the figures are kept")
    names = [*SUBJECTS, FRAGMENTATION]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    chosen = parser.parse_args()
    described = machine.description()
    figures = [one for name in SUBJECTS if name in chosen.only for one in _measure(name)]
    extents = fragmentation.measure() if FRAGMENTATION in chosen.only else []
    print(json.dumps(described), "", *figure.table(figures), "", sep="\n")
    print(*fragmentation.table(extents), sep="\n")
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        document = {
            **described,
            "figures": figure.document(figures),
            "fragmentation": fragmentation.document(extents),
        }
        chosen.json.write_text(json.dumps(document, indent=2) + "\n")
    if any(one.name == FAILED for one in figures):
        raise SystemExit(1)


def _measure(subject: str) -> list[Figure]:
    start = time.monotonic()
    with running_node(gpus=GPUS, gpu_bytes=GPU_BYTES) as node:
        figures: list[Figure] = []
        try:
            for one in SUBJECTS[subject](node):
                figures.append(one)  # noqa: PERF402 - kept if a later one fails
        except AssertionError as error:  # what the others measured is not lost; the end is 1
            figures.append(
                Figure(subject=subject, name=FAILED, value=None, unit="", why_not=str(error))
            )
    print(f"{subject}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    return figures


if __name__ == "__main__":
    main()
