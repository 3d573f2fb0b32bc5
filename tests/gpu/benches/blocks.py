"""Many scattered blocks out and in: by a pool, and by what else one could do with them.

Beside the pool's own choice each way is measured by itself, which is where the ways cross over. The
ceiling is one copy of as many bytes in one piece.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch

import aqua_client
from aqua_client.crossover import Measured, Way
from tests.benchmarks.pacing import Pace, paced
from tests.gpu.benches.timing import (
    LINK_GB_PER_SECOND,
    PACED,
    Seconds,
    Taken,
    medians,
    size,
    until_back,
    until_done,
)
from tests.gpu.probe.findings import Findings, milliseconds
from tests.gpu.probe.plan import Plan
from tests.nodes import wait_until

SPREAD = 4  # scattered blocks lie in a cache of so many times their number
CEILING = "in one piece"
OURS = ("store", "load")
GOAL = " (goal: 0.8)"


def measure(client: aqua_client.Client, device: str, plan: Plan, findings: Findings) -> None:
    """Seconds by block size; the pool's as a share of the ceiling."""
    if device.startswith("cuda"):
        _have_measured(client, device)
    for nbytes in plan.kv_block_sizes:
        what = f"{plan.blocks} blocks of {size(nbytes)}"
        last = f"{what}, {PACED}, of the ceiling{GOAL}"
        if findings.knows(last):
            continue
        with findings.attempt(last):
            one, slower = _scattered(client, nbytes, device, plan)
            words = ", ".join(f"{name} {milliseconds(each)}" for name, each in one.items())
            findings.figures(f"{what}, median seconds", one)
            findings.figures(f"{what}, {PACED}, median seconds", slower)
            findings.row(what, words)
            findings.row(f"{what}, of the ceiling{GOAL}", ", ".join(_shares(one)))
            words = ", ".join(f"{name} {slower[CEILING] / slower[name]:.2f}" for name in OURS)
            findings.row(last, words)
    findings.figures("microseconds by way, as the library measured it", client.stats()["copy_ways"])


def _shares(one: Seconds) -> list[str]:
    """Ours, and how often the best of what users could do instead goes into them."""
    return [
        f"{ours} {one[CEILING] / one[ours]:.2f}, {min(map(one.__getitem__, rivals)) / one[ours]:.1f} times"
        f" the best rival"
        for ours, rivals in (
            ("store", ("a copy each, out", "index_select and a copy, out")),
            ("load", ("a copy each, in", "a copy and index_copy_, in")),
        )
    ]


def _have_measured(client: aqua_client.Client, device: str) -> None:
    """What a pool's first store begins."""
    cache = torch.zeros((64, 2**16), dtype=torch.uint8, device=device)
    pool = client.pool((2**16,), torch.uint8)
    pool.store(cache, range(32)).release()
    wait_until(lambda: bool(client.stats()["copy_ways"]), seconds=60, what="ways are measured")


def _scattered(
    client: aqua_client.Client, nbytes: int, device: str, plan: Plan
) -> tuple[Seconds, Seconds]:
    """As fast as it is, and paced."""
    cache = torch.empty((plan.blocks * SPREAD, nbytes), dtype=torch.uint8, device=device)
    cache.random_(0, 256)
    order = random.Random(7).sample(range(len(cache)), plan.blocks)  # noqa: S311 - no secret
    taken, slower = Taken(), Taken()
    pool = client.pool((nbytes,), torch.uint8)
    for _ in range(plan.repeats + 1):
        _round(pool, cache, order, taken, "")
    for way in Way if client.stats()["copy_ways"] else ():
        with _only(way, client, cache.device, nbytes, plan.blocks):
            for _ in range(plan.repeats + 1):
                _round(pool, cache, order, taken, f" by {way}")
    with paced(LINK_GB_PER_SECOND * 1e9) as pace:
        for _ in range(plan.repeats + 1):
            _round(pool, cache, order, slower, "")
        _ceiling(cache, slower, plan, pace)
    _ceiling(cache, taken, plan, None)
    _rivals(cache, order, taken, plan)
    return medians(taken), medians(slower)


def _ceiling(cache: torch.Tensor, taken: Taken, plan: Plan, pace: Pace | None) -> None:
    piece = torch.zeros_like(cache[: plan.blocks])
    for _ in range(plan.repeats + 1):
        with until_done(taken[CEILING]):
            piece.copy_(cache[: plan.blocks])
            if pace is not None:
                pace.wait(piece.nbytes)


def _round(
    pool: aqua_client.BlockPool,
    cache: torch.Tensor,
    order: list[int],
    taken: Taken,
    how: str,
) -> None:
    with until_back(taken[f"store{how}"], taken[f"store{how}, the call"]):
        slots = pool.store(cache, order)
    assert slots.tier == "peer", slots.reason
    with until_back(taken[f"load{how}"], taken[f"load{how}, the call"]):
        pool.load(slots, cache, order)
    slots.release()


@contextmanager
def _only(
    way: Way, client: aqua_client.Client, device: torch.device, block_bytes: int, count: int
) -> Iterator[None]:
    """As if nothing but that way had ever been measured."""
    streams = client._pager.streams
    assert streams is not None
    table = streams.crossover(device)
    assert table is not None
    before = table.measured
    table.measured = (Measured(block_bytes=block_bytes, count=count, seconds={way: 1e-6}),)
    try:
        yield
    finally:
        table.measured = before


def _rivals(cache: torch.Tensor, order: list[int], taken: Taken, plan: Plan) -> None:
    """Into memory on the same device that lies in one piece, as a slab does.

    In the widest numbers that torch has: by single bytes its gather is several times slower.
    """
    cache = cache.view(torch.int64)
    piece = torch.zeros((plan.blocks, cache.shape[1]), dtype=cache.dtype, device=cache.device)
    ids = torch.tensor(order, device=cache.device)
    for _ in range(plan.repeats + 1):
        with until_done(taken["a copy each, out"]):
            for place, block in enumerate(order):
                piece[place].copy_(cache[block])
        with until_done(taken["a copy each, in"]):
            for place, block in enumerate(order):
                cache[block].copy_(piece[place])
        with until_done(taken["index_select and a copy, out"]):
            piece.copy_(cache.index_select(0, ids))
        with until_done(taken["a copy and index_copy_, in"]):
            cache.index_copy_(0, ids, piece.clone())
