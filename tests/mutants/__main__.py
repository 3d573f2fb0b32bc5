"""`python -m tests.mutants`: the table of who was caught, and 1 if anybody was not."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.mutants.catalogue import MUTANTS
from tests.mutants.trying import Tried, try_all, try_without


def main(arguments: Sequence[str] | None = None) -> int:
    """Try what was asked for."""
    asked = _parser().parse_args(arguments)
    mutants = [one for one in MUTANTS if asked.only in one.name]
    plain = try_without(test for one in mutants for test in one.tests)
    passes = plain.was_tried and not plain.is_caught
    print(f"{'passes' if passes else 'FAILS':<9}{plain.seconds:6.1f} s  unmutated")
    if not passes:
        print(plain.why)
        return 1
    tried: list[Tried] = []
    for one in try_all(mutants, jobs=asked.jobs):
        tried.append(one)
        print(f"{one.verdict:<9}{one.seconds:6.1f} s  {one.name}: {one.why}", flush=True)
    survived = [one.name for one in tried if not one.is_caught]
    print(f"{len(tried)} mutants, {len(survived)} survived")
    if asked.json is not None:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(_as_json(plain, tried))
    return 1 if survived else 0


def _as_json(plain: Tried, tried: Sequence[Tried]) -> str:
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "unmutated": {"passes": not plain.is_caught, "seconds": round(plain.seconds, 1)},
        "mutants": [
            {"name": one.name, "verdict": one.verdict.lower(), "by": one.why} for one in tried
        ],
        "survived": sum(not one.is_caught for one in tried),
    }
    return json.dumps(record, indent=2) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="mutants with this in their name")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--json", type=Path, help="keep the table there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
