"""One benchmark in a process of its own: parking tensors beside what else one could do with them.

    python -m tests.gpu.benching NAME [--quick]

The GPU lends to itself, so a slab is as near as memory can be: link rates are for several GPUs. With
`--quick` it is a rehearsal on stand-in GPUs, which has no rates to tell.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace

import torch

import aqua_client
from tests.contract.places import Place, cuda_place, shm_place
from tests.gpu.probe.findings import Findings, milliseconds
from tests.gpu.probe.plan import KIB, MIB, QUICK, WHOLE, Plan
from tests.gpu.tasks import BENCHMARKS
from tests.nodes import wait_until

SPREAD = 4  # scattered blocks lie in a cache of so many times their number
Seconds = dict[str, float]


def main() -> None:
    """Measure one thing."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.benching")
    parser.add_argument("name", choices=[each.name for each in BENCHMARKS])
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    what, _, kind = chosen.name.partition("-")
    plan = QUICK if chosen.quick else WHOLE
    with (
        _place(kind, quick=chosen.quick) as place,
        aqua_client.connect(socket=place.node.socket, home_gpu=place.home_gpu) as client,
    ):
        wait_until(lambda: client.stats()["attached"], seconds=20, what="attached")
        measure = {"paging": _paging, "blocks": _blocks, "prompt": _prompt}[what]
        measure(client, place.torch_device, plan, Findings())


def _place(kind: str, *, quick: bool) -> AbstractContextManager[Place]:
    return shm_place() if quick else cuda_place(kind, torch.cuda.current_device())


def _paging(client: aqua_client.Client, device: str, plan: Plan, findings: Findings) -> None:
    """One tensor out and in, by size, and the copies that it competes with."""
    found: dict[int, Seconds] = {}
    for nbytes in plan.copy_sizes:
        found[nbytes] = _out_and_in(client, nbytes, device, plan.repeats)
        copies = {name: each for name, each in found[nbytes].items() if name != "release"}
        words = ", ".join(f"{name} {nbytes / each / 1e9:.3g}" for name, each in copies.items())
        findings.row(f"{_size(nbytes)}, GB/s", words)
    findings.figures("median seconds by bytes", found)


def _out_and_in(client: aqua_client.Client, nbytes: int, device: str, repeats: int) -> Seconds:
    tensor = torch.empty(nbytes, dtype=torch.uint8, device=device).random_(0, 256)
    out = torch.zeros_like(tensor)
    hosts = {"pageable": torch.zeros(nbytes, dtype=torch.uint8)}
    if tensor.is_cuda:
        hosts["pinned"] = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=True)
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats + 1):
        with _timed(taken["offload"]):
            handle = client.offload(tensor)
        assert handle.tier == "peer", handle.reason
        with _timed(taken["fetch"]):
            handle.fetch(out=out)
        assert torch.equal(out, tensor)
        with _timed(taken["release"]):
            handle.release()
        with _timed(taken["copy on the device"]):
            out.copy_(tensor)
        for name, host in hosts.items():
            with _timed(taken[f"to {name}"]):
                host.copy_(tensor, non_blocking=True)
            with _timed(taken[f"from {name}"]):
                out.copy_(host, non_blocking=True)
    return _medians(taken)


def _blocks(client: aqua_client.Client, device: str, plan: Plan, findings: Findings) -> None:
    """Many scattered blocks by a pool, by a copy each, and as much in one piece."""
    found: dict[int, Seconds] = {}
    for nbytes in plan.block_sizes:
        found[nbytes] = _scattered(client, nbytes, device, plan)
        words = ", ".join(f"{name} {milliseconds(each)}" for name, each in found[nbytes].items())
        findings.row(f"{plan.blocks} blocks of {_size(nbytes)}", words)
    findings.figures(f"median seconds for {plan.blocks} blocks by block bytes", found)


def _scattered(client: aqua_client.Client, nbytes: int, device: str, plan: Plan) -> Seconds:
    cache = torch.empty((plan.blocks * SPREAD, nbytes), dtype=torch.uint8, device=device)
    cache.random_(0, 256)
    order = random.Random(7).sample(range(len(cache)), plan.blocks)  # noqa: S311 - no secret
    pool = client.pool((nbytes,), torch.uint8)
    piece = torch.zeros((plan.blocks, nbytes), dtype=torch.uint8, device=device)
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(plan.repeats + 1):
        with _timed(taken["store"]):
            slots = pool.store(cache, order)
        with _timed(taken["load"]):
            pool.load(slots, cache, order)
        slots.release()
        with _timed(taken["a copy each"]):
            for place, block in enumerate(order):
                piece[place].copy_(cache[block])
        with _timed(taken["in one piece"]):
            piece.copy_(cache[: plan.blocks])
    return _medians(taken)


def _prompt(client: aqua_client.Client, device: str, plan: Plan, findings: Findings) -> None:
    """Long prompts beside transformers' own offloaded cache; the longest is `long_prompt`'s."""
    from tests.benchmarks.long_prompt.measuring import measure
    from tests.benchmarks.long_prompt.shapes import REAL, TOY, model

    shape = replace(TOY, prompts=(64, 128)) if plan is QUICK else replace(REAL, rounds=1)
    where = torch.device(device)
    llama = model(shape, where)
    for tokens in shape.prompts[:2]:
        for row in measure(client, llama, shape, where, prompt_tokens=tokens):
            words = f"first token {row.first_token_seconds:.3g} s, {row.tokens_per_second:.3g}/s"
            findings.row(row.key, words)
            findings.figures(row.key, asdict(row))


@contextmanager
def _timed(taken: list[float]) -> Iterator[None]:
    """Until the last byte has arrived: what a caller who needs it waits."""
    _synchronize()
    begun = time.perf_counter()
    yield
    _synchronize()
    taken.append(time.perf_counter() - begun)


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _medians(taken: dict[str, list[float]]) -> Seconds:
    """Without the first round, which borrows slabs and warms up the rest."""
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def _size(nbytes: int) -> str:
    return f"{nbytes // MIB} MiB" if nbytes >= MIB else f"{nbytes // KIB} KiB"


if __name__ == "__main__":
    main()
