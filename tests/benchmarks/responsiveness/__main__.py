"""One engine under a burst or a trace, shared in four ways; the table, and the figures as JSON.

    python -m tests.benchmarks.responsiveness --json FILE [--png FILE] [--bursts 25 50 100]
        [--trace CSV --speed 1 2 4] [--paced 375 --paced-host 45] [--budget SECONDS]

On a CUDA GPU, which lends to itself, an 8B model of random weights; elsewhere a toy on shm GPUs.
Resumes: what FILE has a row of is not measured again, so a long run can be made in steps of
`--budget` seconds. `--paced` adds a row with copies as slow as over a link of so many GB/s: a lender
and a borrower on one GPU share its memory, which is faster than any link. `--paced-host` adds one with
copies to and from host memory so slow: on shm GPUs leases are host memory, and only paced do the two
differ. For the toy both rates are divided by `scales.link_part`, which says how it is derived. A model
of the links, no measurement of one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path

import torch

from tests.benchmarks import machine
from tests.benchmarks.pacing import paced
from tests.benchmarks.responsiveness import scales, tables
from tests.benchmarks.responsiveness.replay import Engine, engine, serve
from tests.benchmarks.responsiveness.scales import LARGE, SMALL, Scale, Scenario
from tests.benchmarks.responsiveness.tables import Row
from tests.benchmarks.responsiveness.ways import Links, Way, leases_on, ways
from tests.benchmarks.threads import one_thread

BURSTS = (25, 50, 100)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, print the table and keep it."""
    chosen = _parser().parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scale = LARGE if device.type == "cuda" else SMALL
    rows = _kept(chosen.json)
    links = Links(leases=chosen.paced, host=chosen.paced_host, part=round(scales.link_part(scale)))
    all_ways = ways(lambda: leases_on(device), links)
    missing = [
        (scenario, way)
        for scenario in _scenarios(chosen, scale)
        for way in all_ways
        if tables.key(scenario.name, way.name) not in rows
    ]
    ends_at = time.monotonic() + chosen.budget
    with one_thread() if device.type == "cpu" else nullcontext():
        llama = engine(scale, device) if missing else None
        for scenario, way in missing:
            if time.monotonic() > ends_at:
                print("not all was measured in time: call again")
                break
            assert llama is not None
            row = measure(scenario, way, scale=scale, llama=llama)
            rows[row.key] = row
            _keep(chosen.json, rows, device)
    print(*tables.table(rows), sep="\n")
    if chosen.png and rows:
        print(tables.draw(rows, chosen.png))


def measure(scenario: Scenario, way: Way, *, scale: Scale, llama: Engine) -> Row:
    """Serve it once."""
    with way.open() as client, paced(way.rates):
        summary = serve(
            scenario.story, scale=scale, llama=llama, scheduler=way.scheduler, client=client
        )
    return Row(scenario=scenario.name, way=way.name, summary=summary)


def _scenarios(chosen: argparse.Namespace, scale: Scale) -> Iterator[Scenario]:
    yield from scales.bursts(scale, chosen.bursts)
    if chosen.trace:
        yield from scales.replays(scale, chosen.trace, chosen.speed, chosen.seconds)


def _kept(path: Path) -> dict[str, Row]:
    if not path.exists():
        return {}
    return {name: Row.of(row) for name, row in json.loads(path.read_text())["rows"].items()}


def _keep(path: Path, rows: dict[str, Row], device: torch.device) -> None:
    on_cuda = device.type == "cuda"
    document = {
        **machine.description(),
        "level": torch.cuda.get_device_name(device) if on_cuda else "shm GPUs",
        "packages": {name: metadata.version(name) for name in ("torch", "transformers")},
        "rows": {name: row.document() for name, row in rows.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.responsiveness")
    parser.add_argument("--json", type=Path, required=True, help="where the rows are kept")
    parser.add_argument("--png", type=Path, help="TTFT over the order of arrival")
    parser.add_argument("--bursts", type=int, nargs="*", default=BURSTS, help="requests at once")
    parser.add_argument("--trace", type=Path, help="TIMESTAMP,ContextTokens,GeneratedTokens")
    parser.add_argument("--speed", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="of it")
    parser.add_argument("--seconds", type=float, help="of the trace; else what the engine bears")
    parser.add_argument("--paced", type=float, metavar="GB/S", help="also with copies so slow")
    parser.add_argument(
        "--paced-host", type=float, metavar="GB/S", help="also host memory, and with copies so slow"
    )
    parser.add_argument("--budget", type=float, default=float("inf"), help="begin nothing later")
    return parser


if __name__ == "__main__":
    main()
