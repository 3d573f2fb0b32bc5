"""One toy engine under a burst, shared in four ways; the table, and the figures as JSON.

    python -m tests.benchmarks.responsiveness --json FILE [--png FILE] [--bursts 25 50 100]

Lengths are those of the made-up trace, prompts a 32nd and replies half as long, so that a burst asks
for several times the KV cache and is decoded for longer than it is read, as on a large GPU. FCFS
evicts nobody here; "recompute" is fair slices with nowhere to park.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

import aqua_client
from aqua_client.integrations.transformers.copies import Pools
from tests.benchmarks import machine
from tests.benchmarks.responsiveness.replay import Summary, serve
from tests.benchmarks.serving_model.arrivals import Arrival, a_burst
from tests.benchmarks.threads import one_thread
from tests.integrations.hosting import host_client
from tests.nodes import MIB, running_node, wait_until

FCFS, LEASES = "FCFS", "fair + leases"
BLOCKS = 48  # of 16 tokens: some eight requests
BASE_PER_SECOND, BASE_SECONDS = 1.0, 6.0
PROMPT_SCALE, REPLY_SCALE = 32, 2
HEADINGS = (
    "burst", "way", "TTFT p50, p95, p99", "vs FCFS", "between tokens p50, p99",
    "completion p50, p99", "vs FCFS", "stall p50, p95", "tokens/s", "vs FCFS", "moved",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table and keep it."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.responsiveness")
    parser.add_argument("--json", type=Path, required=True, help="where the figures are kept")
    parser.add_argument("--png", type=Path, help="TTFT over the order of arrival; needs matplotlib")
    parser.add_argument("--bursts", type=int, nargs="+", default=[25, 50, 100])
    chosen = parser.parse_args(arguments)
    rows: dict[int, dict[str, Summary]] = {}
    print(_line(HEADINGS), _line(["---"] * len(HEADINGS)), sep="\n")
    with one_thread():
        for size in chosen.bursts:
            rows[size] = {}
            for name, scheduler, client in _ways():
                with client as parked_by:
                    rows[size][name] = serve(
                        arrivals(size), blocks=BLOCKS, scheduler=scheduler, client=parked_by
                    )
                print(_row(size, name, rows[size]), flush=True)
    document = {
        **machine.description(),
        "packages": {name: metadata.version(name) for name in ("torch", "transformers")},
        "bursts": {
            size: {name: asdict(one) for name, one in found.items()} for size, found in rows.items()
        },
    }
    chosen.json.write_text(json.dumps(document, indent=2) + "\n")
    if chosen.png:
        _draw(rows[max(rows)], chosen.png)


def arrivals(size: int) -> list[Arrival]:
    """The story of a burst of *size*, the same each time."""
    story = a_burst(size, per_second=BASE_PER_SECOND, seconds=BASE_SECONDS, seed=1)
    return [
        replace(
            one,
            prompt_tokens=max(1, one.prompt_tokens // PROMPT_SCALE),
            reply_tokens=max(2, one.reply_tokens // REPLY_SCALE),
        )
        for one in story
    ]


def _ways() -> Iterator[tuple[str, str, AbstractContextManager[Pools | None]]]:
    yield FCFS, "fifo", _nothing()
    yield "fair + recompute", "aqua_fair", host_client(host_limit_bytes=0)
    yield "fair + DRAM", "aqua_fair", host_client(host_limit_bytes=2048 * MIB)
    yield LEASES, "aqua_fair", _leases()


@contextmanager
def _nothing() -> Iterator[Pools | None]:
    yield None


@contextmanager
def _leases() -> Iterator[Pools | None]:
    with (
        running_node(gpus=3, gpu_bytes=512 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        wait_until(lambda: client.stats()["attached"], seconds=20, what="attached")
        yield client


def _row(size: int, name: str, found: Mapping[str, Summary]) -> str:
    one, plain = found[name], found[FCFS]
    first, gaps, completion, stall = (
        one.first_token,
        one.between_tokens,
        one.completion,
        one.stall,
    )
    moved = f"{one.moved_bytes / 1e6:,.0f} MB"
    return _line(
        [
            str(size),
            name,
            f"{first[0]:.2f}, {first[1]:.2f}, {first[2]:.2f} s",
            f"{plain.first_token[2] / first[2]:.1f}x better",
            f"{gaps[0] * 1000:.0f}, {gaps[2] * 1000:.0f} ms",
            f"{completion[0]:.1f}, {completion[2]:.1f} s",
            f"{completion[2] / plain.completion[2]:.2f}x",
            f"{stall[0]:.1f}, {stall[1]:.1f} s",
            f"{one.tokens_per_second:,.0f}",
            f"{one.tokens_per_second / plain.tokens_per_second:.2f}",
            f"{moved}, {one.recomputed} recomputed" if one.recomputed else moved,
        ]
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _draw(found: Mapping[str, Summary], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name, one in found.items():
        axes.plot(one.first_tokens, label=name)
    axes.set(xlabel="order of arrival", ylabel="time to first token, s", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
