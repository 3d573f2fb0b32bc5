"""What it costs to park 1,000 scattered blocks of 32 KiB and to bring them back.

The rivals move the same bytes in the same rounds, on one thread, into memory that has been touched:
one contiguous `copy_`, which is the least that anybody can pay; a `copy_` for each block; and
`index_select` into a new tensor, which is then copied (to come back: copied, then `index_copy_`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

import torch

import aqua_client

BLOCK_BYTES = 32 * 2**10
BLOCKS = 1000
CACHE_BLOCKS = 4096
ROUNDS = 40
WARM_ROUNDS = 5
CLOCK = time.perf_counter


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFigures:
    """Medians, in milliseconds."""

    blocks: int
    block_bytes: int
    tier: str  # where the blocks went
    copy_ms: float  # contiguous
    out_ms: float
    out_each_ms: float  # a copy_ for each block
    out_select_ms: float  # index_select, then a copy
    in_ms: float
    in_each_ms: float
    in_select_ms: float

    @property
    def out_share(self) -> float:
        """Of the speed of one contiguous copy."""
        return self.copy_ms / self.out_ms

    @property
    def in_share(self) -> float:
        """Of the speed of one contiguous copy."""
        return self.copy_ms / self.in_ms


def measure(socket: str) -> PoolFigures:
    """Measure against the node at *socket*."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with aqua_client.connect(socket=socket, home_gpu="SHM-0") as client:
            return _measure(client)
    finally:
        torch.set_num_threads(threads)


def document(figures: PoolFigures) -> dict[str, object]:
    """For the result file."""
    return asdict(figures)


def table(figures: PoolFigures) -> Iterator[str]:
    """For people."""
    mib = figures.blocks * figures.block_bytes / 2**20
    yield (
        f"{figures.blocks} scattered blocks of {figures.block_bytes // 2**10} KiB ({mib:.1f} MiB), "
        f"{figures.tier}; one contiguous copy_ of as many bytes takes {figures.copy_ms:.2f} ms"
    )
    yield f"{'':>5} {'pool':>9} {'of copy_':>9} {'a copy_ each':>13} {'index_select + copy_':>21}"
    for name, own, share, each, select in (
        ("out", figures.out_ms, figures.out_share, figures.out_each_ms, figures.out_select_ms),
        ("in", figures.in_ms, figures.in_share, figures.in_each_ms, figures.in_select_ms),
    ):
        yield f"{name:>5} {own:>7.2f}ms {share:>9.2f} {each:>11.2f}ms {select:>19.2f}ms"


def _measure(client: aqua_client.Client) -> PoolFigures:
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
    return PoolFigures(blocks=BLOCKS, block_bytes=BLOCK_BYTES, tier=tier, **medians)
