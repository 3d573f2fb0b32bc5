"""A client of the soak: it parks, fetches and compares, a step at a time, until it is told to stop.

    python -m tests.benchmarks.soak.client SEED

A byte that differs, or `store` data that is lost, ends it with a traceback. A line on stdin ends
the work: everything is compared once more and released, and one line of JSON says what was done.
The end of stdin ends the program.
"""

from __future__ import annotations

import gc
import json
import random
import select
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch

import aqua_client

PAUSE_SECONDS = 0.02  # between steps: others use this machine too
MOST_PARKED = 24
LARGEST_BYTES = 2 * 2**20
MOST_BYTES = (700, 70_000, 600_000, LARGEST_BYTES, LARGEST_BYTES)
EMPTYING_SHARE = 0.001  # of the steps
BLOCK_BYTES = 32 * 2**10
CACHE_BLOCKS = 64
NOISE = torch.randint(0, 256, (2 * LARGEST_BYTES,), dtype=torch.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """A handle and what must come back."""

    handle: aqua_client.OffloadedTensor
    expected: torch.Tensor
    keep: str


class User:
    """Holds a bounded amount, so that its own memory may be watched."""

    def __init__(self, client: aqua_client.Client, seed: int) -> None:
        self.seen: Counter[str] = Counter()
        self._client = client
        self._chance = random.Random(seed)  # noqa: S311 - a story that repeats, no secret
        self._parked: list[Parked] = []
        self._pool = client.pool((BLOCK_BYTES,), torch.uint8)
        self._steps: tuple[Callable[[], None], ...] = (
            self._park,
            self._park,
            self._compare_one,
            self._compare_one,
            self._release_one,
            self._batch,
            self._blocks,
            self._same,
        )

    def step(self) -> None:
        """Something, chosen by chance."""
        if self._chance.random() < EMPTYING_SHARE:
            self.end()  # so that slabs go back, and are borrowed anew
        step = self._chance.choice(self._steps)
        self.seen[step.__name__.strip("_")] += 1
        step()

    def end(self) -> None:
        """Compare everything, and let go of it."""
        while self._parked:
            self._compare(self._parked[-1])
            self._parked.pop().handle.release()
        gc.collect()

    def _park(self) -> None:
        if len(self._parked) >= MOST_PARKED:
            self._release_one()
        tensor = self._tensor()
        keep = self._chance.choice(("store", "store", "cache"))
        handle = self._client.offload(tensor, keep=keep)
        self._parked.append(Parked(handle=handle, expected=tensor, keep=keep))

    def _compare_one(self) -> None:
        if self._parked:
            self._compare(self._chance.choice(self._parked))

    def _release_one(self) -> None:
        if self._parked:
            parked = self._parked.pop(self._chance.randrange(len(self._parked)))
            if self._chance.random() < 0.5:  # else it is left to garbage collection
                parked.handle.release()

    def _batch(self) -> None:
        tensors = [self._tensor() for _ in range(self._chance.randrange(1, 5))]
        handles = self._client.offload_many(tensors)
        fetched = self._client.fetch_many(handles)
        assert all(map(torch.equal, fetched, tensors)), "a batch differs"

    def _blocks(self) -> None:
        cache = NOISE[: CACHE_BLOCKS * BLOCK_BYTES].clone().view(CACHE_BLOCKS, BLOCK_BYTES)
        ids = self._chance.sample(range(CACHE_BLOCKS), 24)
        kept = cache[ids]
        slots = self._pool.store(cache, ids)
        cache.zero_()
        self._pool.load(slots, cache, ids)
        slots.release()
        assert torch.equal(cache[ids], kept), "blocks differ"

    def _same(self) -> None:
        weights = self._tensor().clone()
        handle = self._client.offload(weights, immutable=True)
        fetched = handle.fetch()
        assert self._client.offload(fetched, immutable=True) is handle
        assert torch.equal(fetched, weights), "what nobody writes to differs"

    def _compare(self, parked: Parked) -> None:
        try:
            fetched = parked.handle.fetch()
        except aqua_client.LeaseLost:
            assert parked.keep == "cache", "store data was lost"
            self.seen["cache_dropped"] += 1
            return
        assert torch.equal(fetched, parked.expected), f"{parked.expected.nbytes} bytes differ"

    def _tensor(self) -> torch.Tensor:
        nbytes = self._chance.randint(1, self._chance.choice(MOST_BYTES))
        start = self._chance.randrange(LARGEST_BYTES)
        return NOISE[start : start + nbytes]


def main() -> None:
    warnings.simplefilter("ignore", aqua_client.AquaWarning)
    torch.set_num_threads(1)
    with aqua_client.connect() as client:
        user = User(client, int(sys.argv[1]))
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
            user.step()
        user.end()
        print(json.dumps({"steps": user.seen, "stats": client.stats()}), flush=True)
        sys.stdin.readline()
        sys.stdin.readline()


if __name__ == "__main__":
    main()
