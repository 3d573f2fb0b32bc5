"""What it costs to park 1,000 scattered blocks of 32 KiB and to bring them back.

The rivals move the same bytes in the same rounds, on one thread, into memory that has been touched:
one contiguous `copy_`, which is the least that anybody can pay; a `copy_` for each block; and
`index_select` into a new tensor, which is then copied (to come back: copied, then `index_copy_`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

import aqua_client
from tests.benchmarks.figure import Figure
from tests.benchmarks.threads import one_thread

SUBJECT = "pools"
OUT_SHARE = 0.8
IN_SHARE = 0.65
BLOCK_BYTES = 32 * 2**10
BLOCKS = 1000
CACHE_BLOCKS = 4096
ROUNDS = 40
WARM_ROUNDS = 5
CLOCK = time.perf_counter


@dataclass(frozen=True, slots=True, kw_only=True)
class Medians:
    """In milliseconds."""

    tier: str  # where the blocks went: anything but "peer" is not the figure that was wanted
    copy_ms: float  # contiguous
    out_ms: float
    out_each_ms: float  # a copy_ for each block
    out_select_ms: float  # index_select, then a copy
    in_ms: float
    in_each_ms: float
    in_select_ms: float


def measure(socket: str) -> Iterator[Figure]:
    """Measure against the node at *socket*."""
    with one_thread(), aqua_client.connect(socket=socket, home_gpu="SHM-0") as client:
        medians = _measure(client)
    size = f"{BLOCKS:,} blocks of {BLOCK_BYTES // 2**10} KiB"
    size += "" if medians.tier == "peer" else f" in {medians.tier}"
    for name, own_ms, goal, each_ms, select_ms in (
        ("out", medians.out_ms, OUT_SHARE, medians.out_each_ms, medians.out_select_ms),
        ("in", medians.in_ms, IN_SHARE, medians.in_each_ms, medians.in_select_ms),
    ):
        yield Figure(
            subject=SUBJECT,
            name=f"{size}, {name} ({own_ms:.2f} ms)",
            value=medians.copy_ms / own_ms,
            unit="of one `copy_`'s speed",
            rival=f"one `copy_` {medians.copy_ms:.2f} ms, one each {each_ms:.2f} ms, "
            f"`index_select` or `index_copy_` and a copy {select_ms:.2f} ms",
            at_least=goal,
        )


def _measure(client: aqua_client.Client) -> Medians:
    cache = torch.randint(0, 256, (CACHE_BLOCKS, BLOCK_BYTES), dtype=torch.uint8)
    ids = torch.randperm(CACHE_BLOCKS)[:BLOCKS].tolist()
    kept = cache[ids]
    source, buffer = torch.zeros_like(kept), torch.zeros_like(kept)
    pool = client.pool((BLOCK_BYTES,), cache.dtype)
    held = pool.store(cache, ids)
    tier = held.tier

    def store() -> None:
        nonlocal held
        held.release()
        held = pool.store(cache, ids)

    rivals: Mapping[str, Callable[[], object]] = {
        "copy_ms": lambda: buffer.copy_(source),
        "out_ms": store,
        "out_each_ms": lambda: [buffer[to].copy_(cache[one]) for to, one in enumerate(ids)],
        "out_select_ms": lambda: buffer.copy_(cache[ids]),
        "in_ms": lambda: pool.load(held, cache, ids),
        "in_each_ms": lambda: [cache[one].copy_(buffer[to]) for to, one in enumerate(ids)],
        "in_select_ms": lambda: cache.index_copy_(0, torch.tensor(ids), buffer.clone()),
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(ROUNDS + WARM_ROUNDS):
        for name, call in rivals.items():
            start = CLOCK()
            call()
            milliseconds[name].append((CLOCK() - start) * 1e3)
    assert torch.equal(cache[ids], kept), "the figures are of bytes that did not come back"
    medians = {name: statistics.median(row[WARM_ROUNDS:]) for name, row in milliseconds.items()}
    return Medians(tier=tier, **medians)
