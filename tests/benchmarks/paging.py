"""What one `offload`, `fetch` and `release` cost in leases that are held, beside a plain copy.

The rival is `Tensor.copy_` into a buffer that has been touched: the least that anybody can pay
for moving the bytes. It takes its turn in every round, so a change of the machine's speed hits
both. All of it runs on one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

import aqua_client

KIB = 2**10
SIZES = tuple(4 * KIB * 4**step for step in range(8))  # 4 KiB to 64 MiB
WARM_ROUNDS = 5
ROUNDS = 400
SECONDS_A_SIZE = 4.0
CLOCK = time.perf_counter


@dataclass(frozen=True, slots=True, kw_only=True)
class PagingFigures:
    """Medians of one size, in microseconds."""

    nbytes: int
    rounds: int
    tier: str  # where the bytes went: anything but "peer" is not the figure that was wanted
    copy_us: float
    offload_us: float
    fetch_us: float  # into a tensor that exists (`out=`)
    release_us: float

    @property
    def offload_ratio(self) -> float:
        """Times as long as the plain copy."""
        return (self.offload_us + self.release_us) / self.copy_us

    @property
    def fetch_ratio(self) -> float:
        """Times as long as the plain copy."""
        return self.fetch_us / self.copy_us


def measure(socket: str) -> list[PagingFigures]:
    """Measure every size against the node at *socket*."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with aqua_client.connect(socket=socket, home_gpu="SHM-0") as client:
            return [_measure_size(client, nbytes) for nbytes in SIZES]
    finally:
        torch.set_num_threads(threads)


def document(figures: list[PagingFigures]) -> list[dict[str, object]]:
    """For the result file."""
    return [asdict(row) for row in figures]


def table(figures: list[PagingFigures]) -> Iterator[str]:
    """For people."""
    yield "offload / fetch / release in held leases, and Tensor.copy_ into a touched buffer"
    yield (
        f"{'size':>9} {'copy_':>10} {'offload':>10} {'fetch':>10} {'release':>10}"
        f" {'off+rel/copy':>13} {'fetch/copy':>11} {'copy GB/s':>10} {'off GB/s':>9}  tier"
    )
    for row in figures:
        yield (
            f"{row.nbytes // KIB:>6}KiB {row.copy_us:>8.1f}us {row.offload_us:>8.1f}us"
            f" {row.fetch_us:>8.1f}us {row.release_us:>8.1f}us {row.offload_ratio:>12.2f}x"
            f" {row.fetch_ratio:>10.2f}x {row.nbytes / row.copy_us / 1e3:>10.2f}"
            f" {row.nbytes / row.offload_us / 1e3:>9.2f}  {row.tier}"
        )


def _measure_size(client: aqua_client.Client, nbytes: int) -> PagingFigures:
    source = torch.randint(0, 256, (nbytes,), dtype=torch.uint8)
    buffer = torch.zeros_like(source)
    out = torch.zeros_like(source)
    copies: list[float] = []
    offloads: list[float] = []
    fetches: list[float] = []
    releases: list[float] = []
    tiers: set[str] = set()
    end = CLOCK() + SECONDS_A_SIZE
    while len(copies) < ROUNDS + WARM_ROUNDS and (CLOCK() < end or len(copies) <= WARM_ROUNDS):
        start = CLOCK()
        buffer.copy_(source)
        copied = CLOCK()
        handle = client.offload(source)
        offloaded = CLOCK()
        handle.fetch(out=out)
        fetched = CLOCK()
        tiers.add(handle.tier)
        before_release = CLOCK()
        handle.release()
        released = CLOCK()
        copies.append(copied - start)
        offloads.append(offloaded - copied)
        fetches.append(fetched - offloaded)
        releases.append(released - before_release)
    assert torch.equal(out, source), "the figures are of bytes that did not come back"
    return PagingFigures(
        nbytes=nbytes,
        rounds=len(copies) - WARM_ROUNDS,
        tier="+".join(sorted(tiers)),
        copy_us=_median_us(copies),
        offload_us=_median_us(offloads),
        fetch_us=_median_us(fetches),
        release_us=_median_us(releases),
    )


def _median_us(seconds: list[float]) -> float:
    return statistics.median(seconds[WARM_ROUNDS:]) * 1e6
