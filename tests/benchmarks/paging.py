"""What one `offload`, `fetch` and `release` cost in leases that are held, beside a plain copy.

The rival is `Tensor.copy_` into a buffer that has been touched: the least that anybody can pay
for moving the bytes; for `fetch` it is the copy back out of that buffer. Both take their turn in
every round, so a change of the machine's speed hits both, and in turn one or the other is first,
so that none always finds the caches as its neighbour left them. All of it runs on one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

import aqua_client
from tests.benchmarks.figure import Figure
from tests.benchmarks.threads import one_thread

SUBJECT = "paging"
KIB = 2**10
SIZES = tuple(4 * KIB * 4**step for step in range(8))  # 4 KiB to 64 MiB
SMALL = 64 * KIB
OUT_OVER_COPY_US = 10.0  # what `offload` and `release` may add to a small copy
IN_OVER_COPY_US = 5.0
LARGE = 16 * 2**20
LARGE_SHARE = 0.9  # of a plain copy's speed, from there up
WARM_ROUNDS = 5
ROUNDS = 400
SECONDS_A_SIZE = 3.0
CLOCK = time.perf_counter
TIMED = ("copy_us", "copy_back_us", "offload_us", "fetch_us", "release_us")

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Medians:
    """Of one size, in microseconds."""

    nbytes: int
    tier: str  # where the bytes went: anything but "peer" is not the figure that was wanted
    copy_us: float
    copy_back_us: float
    offload_us: float
    fetch_us: float  # into a tensor that exists (`out=`)
    release_us: float


def measure(socket: str) -> Iterator[Figure]:
    """Measure every size against the node at *socket*."""
    with one_thread(), aqua_client.connect(socket=socket, home_gpu="SHM-0") as client:
        for nbytes in SIZES:
            yield from _figures(_measure_size(client, nbytes))


def _figures(medians: Medians) -> Iterator[Figure]:
    size = _in_words(medians.nbytes) + ("" if medians.tier == "peer" else f" in {medians.tier}")
    out_us = medians.offload_us + medians.release_us
    is_small = medians.nbytes == SMALL
    for name, own_us, copy_us, allowed_us in (
        ("`offload` + `release`", out_us, medians.copy_us, OUT_OVER_COPY_US),
        ("`fetch(out=)`", medians.fetch_us, medians.copy_back_us, IN_OVER_COPY_US),
    ):
        yield Figure(
            subject=SUBJECT,
            name=f"{size}, {name}",
            value=own_us,
            unit="us",
            rival=f"`copy_`, touched buffer {copy_us:,.1f} us",
            at_most=copy_us + allowed_us if is_small else None,
        )
        if medians.nbytes >= LARGE:
            yield Figure(
                subject=SUBJECT,
                name=f"{size}, {name}, speed",
                value=copy_us / own_us,
                unit="of `copy_`'s",
                rival=f"{medians.nbytes / copy_us / 1e3:.1f} GB/s",
                at_least=LARGE_SHARE,
            )


def _measure_size(client: aqua_client.Client, nbytes: int) -> Medians:
    source = torch.randint(0, 256, (nbytes,), dtype=torch.uint8)
    buffer = torch.zeros_like(source)
    out = torch.zeros_like(source)
    seconds: dict[str, list[float]] = {name: [] for name in TIMED}
    tiers: set[str] = set()

    def timed(name: str, call: Callable[[], ResultT]) -> ResultT:
        start = CLOCK()
        result = call()
        seconds[name].append(CLOCK() - start)
        return result

    def rival() -> None:
        timed("copy_us", lambda: buffer.copy_(source))
        timed("copy_back_us", lambda: out.copy_(buffer))

    def ours() -> None:
        handle = timed("offload_us", lambda: client.offload(source))
        timed("fetch_us", lambda: handle.fetch(out=out))
        tiers.add(handle.tier)
        timed("release_us", handle.release)

    end, rounds = CLOCK() + SECONDS_A_SIZE, 0
    while rounds < ROUNDS + WARM_ROUNDS and (CLOCK() < end or rounds <= WARM_ROUNDS):
        for turn in (rival, ours) if rounds % 2 else (ours, rival):
            turn()
        rounds += 1
    out.zero_()
    client.offload(source).fetch(out=out)
    assert torch.equal(out, source), "the figures are of bytes that did not come back"
    medians = {name: statistics.median(row[WARM_ROUNDS:]) * 1e6 for name, row in seconds.items()}
    return Medians(nbytes=nbytes, tier="+".join(sorted(tiers)), **medians)


def _in_words(nbytes: int) -> str:
    return f"{nbytes // KIB} KiB" if nbytes < 2**20 else f"{nbytes // 2**20} MiB"
