"""How full a slab gets before tensors no longer fit, with the client's own allocator.

Replays a server that parks and releases for ever: sizes of a mix, lifetimes by chance (whoever goes
is drawn from all that are there), the slab kept as full as is said. Only the allocator runs, on
numbers: no node, no memory, no copies. What does not fit here goes to another slab of a client's.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

from aqua_client.extents import ExtentMap

KIB, MIB = 2**10, 2**20
SLAB_BYTES = 256 * MIB  # the largest; fewer bytes to choose from are worse
FILLS = (0.70, 0.85, 0.95)
STEPS = 20_000
SEED = 1
CLOCK = time.perf_counter_ns


def _tokens(chance: random.Random) -> int:
    """Of one conversation: mostly some hundreds, a few of many thousands."""
    return min(16_384, 1 + int(chance.lognormvariate(6.4, 1.0)))


# What a request may be, in bytes. The model is of 8 KV heads of 128 in 16 bits.
MIXES: Mapping[str, Callable[[random.Random], int]] = {
    "K or V of a layer": lambda chance: _tokens(chance) * 2 * KIB,
    "blocks of 32 KiB": lambda chance: -(-_tokens(chance) // 16) * 32 * KIB,
    "8 bits and scales": lambda chance: _tokens(chance) * (KIB + 8 * 2),
    "small states": lambda chance: 1 + int(chance.lognormvariate(8.5, 1.5)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FragmentationFigures:
    """One mix at one fill, over the steps after it was reached."""

    mix: str
    fill: float  # of the slab's bytes
    ranges: int  # taken at the end
    external: float  # mean of 1 - longest hole / free bytes
    unfit_share: float  # of requests: enough bytes were free, but not in one hole
    waste_share: float  # of the bytes taken: lost to rounding
    take_ns: float  # medians
    give_back_ns: float


class _Slab:
    """An extent map that is kept full, and what was seen there."""

    def __init__(self, fill: float) -> None:
        self.extents = ExtentMap(SLAB_BYTES)
        self.taken: list[tuple[int, int]] = []  # offsets, and the bytes that were asked for
        self.most_bytes = int(fill * SLAB_BYTES)
        self.unfit = 0
        self.takes: list[int] = []
        self.gives: list[int] = []

    def park(self, nbytes: int, chance: random.Random) -> None:
        """Release whoever it takes, then park if one hole has room."""
        extents = self.extents
        while self.taken and extents.used_bytes + nbytes > self.most_bytes:
            last = chance.randrange(len(self.taken))
            self.taken[last], self.taken[-1] = self.taken[-1], self.taken[last]
            offset, _ = self.taken.pop()
            start = CLOCK()
            extents.give_back(offset)
            self.gives.append(CLOCK() - start)
        if nbytes > extents.largest_free_bytes:
            self.unfit += nbytes <= extents.free_bytes
            return
        start = CLOCK()
        offset = extents.take(nbytes)
        self.takes.append(CLOCK() - start)
        self.taken.append((offset, nbytes))

    def forget_figures(self) -> None:
        """What is seen counts from here."""
        self.unfit = 0
        self.takes.clear()
        self.gives.clear()


def measure() -> list[FragmentationFigures]:
    """Replay every mix at every fill."""
    return [_replay(mix, fill) for mix in MIXES for fill in FILLS]


def document(figures: list[FragmentationFigures]) -> list[dict[str, object]]:
    """For the result file."""
    return [asdict(row) for row in figures]


def table(figures: list[FragmentationFigures]) -> Iterator[str]:
    """For people."""
    yield f"the allocator of a {SLAB_BYTES // MIB} MiB slab that is kept full, lifetimes by chance"
    yield (
        f"{'mix':<18} {'fill':>5} {'ranges':>7} {'external':>9} {'did not fit':>12} {'waste':>7}"
        f" {'take':>8} {'give back':>10}"
    )
    for row in figures:
        yield (
            f"{row.mix:<18} {row.fill:>5.0%} {row.ranges:>7} {row.external:>9.1%}"
            f" {row.unfit_share:>12.2%} {row.waste_share:>7.2%} {row.take_ns:>6.0f}ns"
            f" {row.give_back_ns:>8.0f}ns"
        )


def _replay(mix: str, fill: float) -> FragmentationFigures:
    chance = random.Random(SEED)  # noqa: S311 - a story that repeats, no secret
    slab, size = _Slab(fill), MIXES[mix]
    # Until as much has gone again as fits: what the first ones left behind counts no more.
    while len(slab.gives) <= len(slab.taken):
        slab.park(size(chance), chance)
    slab.forget_figures()
    external: list[float] = []
    for _ in range(STEPS):
        slab.park(size(chance), chance)
        external.append(1 - slab.extents.largest_free_bytes / slab.extents.free_bytes)
    asked = sum(nbytes for _, nbytes in slab.taken)
    return FragmentationFigures(
        mix=mix,
        fill=fill,
        ranges=len(slab.taken),
        external=statistics.mean(external),
        unfit_share=slab.unfit / STEPS,
        waste_share=1 - asked / slab.extents.used_bytes,
        take_ns=statistics.median(slab.takes),
        give_back_ns=statistics.median(slab.gives),
    )
