"""Long prompts: leases beside transformers' own offloaded cache, and beside no offload.

    python -m tests.benchmarks.long_prompt --json FILE [--prompts 8192 32768] [--shape 8B]
        [--paced 375]

On a CUDA GPU, which lends to itself, an 8B model; elsewhere a toy on shm GPUs. Resumes: what FILE has
a row of is not measured again. Ours keeps two layers of all; the figures are of one thread on a CPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

import aqua_client
from tests.benchmarks.long_prompt.measuring import Row, key, measure
from tests.benchmarks.long_prompt.shapes import REAL, TOY, Shape, model
from tests.benchmarks.long_prompt.ways import LEASES, OFFLOADED, RESIDENT, WHOLE_LAYERS, ways
from tests.benchmarks.pacing import paced
from tests.benchmarks.threads import one_thread
from tests.contract.places import cuda_place
from tests.nodes import MIB, running_node, wait_until

GPU_BYTES = 512 * MIB
HEADINGS = ("prompt", "cache", "first token, s", "tokens/s", "KV, MiB", "out, MiB", "in, MiB")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, print the table and keep it."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.long_prompt")
    parser.add_argument("--json", type=Path, required=True, help="where the rows are kept")
    parser.add_argument("--prompts", type=int, nargs="+", help="in tokens; else the shape's")
    parser.add_argument("--shape", choices=[TOY.name, REAL.name])
    parser.add_argument(
        "--paced", type=float, metavar="GB/S", help="leases also with copies so slow"
    )
    parser.add_argument("--rounds", type=int, help="of which the best counts; else the shape's")
    chosen = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = {TOY.name: TOY, REAL.name: REAL, None: REAL if device.type == "cuda" else TOY}[
        chosen.shape
    ]
    shape = replace(
        shape,
        prompts=tuple(chosen.prompts or shape.prompts),
        rounds=chosen.rounds or shape.rounds,
    )
    rows = _kept(chosen.json)
    for row in _missing(shape, device, rows, chosen.paced):
        rows[row.key] = asdict(row)
        _keep(chosen.json, rows, device)
    print(*_table(rows), sep="\n")


def _missing(
    shape: Shape, device: torch.device, rows: dict[str, dict[str, object]], rate: float | None
) -> Iterator[Row]:
    with (
        one_thread() if device.type == "cpu" else nullcontext(),
        _client(device) as client,
    ):
        slow = f"{LEASES}, *paced* to {rate:g} GB/s" if rate else LEASES
        names = [*ways(client, device), slow]
        lengths = [
            tokens
            for tokens in shape.prompts
            if any(_is_lacking(rows, shape.name, tokens, name) for name in names)
        ]
        llama = model(shape, device) if lengths else None
        for tokens in lengths:
            assert llama is not None
            lacking = partial(_is_lacking, rows, shape.name, tokens)
            yield from measure(client, llama, shape, device, prompt_tokens=tokens, wanted=lacking)
            if lacking(slow):
                with paced(rate * 1e9 if rate else None):
                    for row in measure(
                        *(client, llama, shape, device),
                        prompt_tokens=tokens,
                        wanted=lambda name: name == LEASES,
                    ):
                        yield replace(row, way=slow)


def _is_lacking(rows: dict[str, dict[str, object]], shape: str, tokens: int, way: str) -> bool:
    return key(shape, tokens, way) not in rows


@contextmanager
def _client(device: torch.device) -> Iterator[aqua_client.Client]:
    if device.type == "cuda":
        with (
            cuda_place("legacy", torch.cuda.current_device()) as place,
            aqua_client.connect(socket=place.node.socket, home_gpu=place.home_gpu) as client,
        ):
            wait_until(lambda: client.stats()["attached"], seconds=20, what="attached")
            yield client
        return
    with (
        running_node(gpus=3, gpu_bytes=GPU_BYTES) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        wait_until(lambda: client.stats()["attached"], seconds=20, what="attached")
        yield client


def _kept(path: Path) -> dict[str, dict[str, object]]:
    if not path.exists():
        return {}
    found: dict[str, dict[str, object]] = json.loads(path.read_text())["rows"]
    return found


def _keep(path: Path, rows: dict[str, dict[str, object]], device: torch.device) -> None:
    on_cuda = device.type == "cuda"
    document = {
        "device": torch.cuda.get_device_name(device) if on_cuda else "CPU, shm GPUs",
        "rival": OFFLOADED if on_cuda else f"{WHOLE_LAYERS}: the other wants CUDA",
        "packages": {name: metadata.version(name) for name in ("torch", "transformers")},
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def _table(rows: dict[str, dict[str, object]]) -> Iterator[str]:
    yield f"| {' | '.join(HEADINGS)} | answer |"
    yield f"|{' --- |' * (len(HEADINGS) + 1)}"
    for row in rows.values():
        plain = rows.get(key(row["shape"], row["prompt_tokens"], RESIDENT))
        same = "" if plain is None else _sameness(row["answer"], plain["answer"])
        cells = [f"{row['shape']}, {row['prompt_tokens']:,}", _way(row)]
        cells += [f"{row[name]:.3g}" for name in ("first_token_seconds", "tokens_per_second")]
        cells += [f"{_mib(row[name])}" for name in ("kv_bytes", "out_bytes", "in_bytes")]
        yield f"| {' | '.join(cells)} | {same} |"


def _way(row: dict[str, object]) -> str:
    if not row["tier"]:
        return str(row["way"])
    return f"{row['way']} ({row['tier']}), {_mib(row['resident_bytes'])} MiB resident"


def _sameness(answer: object, plain: object) -> str:
    return "the same" if list(answer) == list(plain) else "differs"  # type: ignore[call-overload]


def _mib(nbytes: object) -> str:
    return f"{int(str(nbytes)) / MIB:,.1f}"


if __name__ == "__main__":
    main()
