"""A client program for chaos: it parks, fetches, compares and forks until it is told to stop.

    python -m tests.end_to_end.parker SEED [PAUSE_SECONDS]

Any line on stdin ends the churn: it then compares everything once more, waits until leases can be
had again, and prints one line of JSON. The next line, or the end of stdin, ends the program.
"""

from __future__ import annotations

import json
import os
import random
import select
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import torch

import aqua_client

MIB = 2**20
MOST_HANDLES = 24
LARGEST_BYTES = 5 * MIB
CHILD_SECONDS = 1.0  # a forked child holds the sentinel for up to so long
HEAL_SECONDS = 40.0
PAUSE_SECONDS = 0.002

ResultT = TypeVar("ResultT")


class Parker:
    """Handles, what must be behind them, and what was seen."""

    def __init__(self, seed: int) -> None:
        self.client = aqua_client.connect()
        self.seen: Counter[str] = Counter()
        self.slowest: dict[str, float] = {}
        self._random = random.Random(seed)  # noqa: S311 - no secret
        generator = torch.Generator().manual_seed(seed)
        self._noise = torch.randint(
            0, 256, (2 * LARGEST_BYTES,), dtype=torch.uint8, generator=generator
        )
        self._handles: list[tuple[aqua_client.OffloadedTensor, torch.Tensor, str]] = []
        self._children: set[int] = set()

    def step(self) -> None:
        """Something, chosen by chance."""
        what = self._random.choices(
            (self.park, self.compare, self.release, self.fork), (8, 10, 4, 0.2)
        )[0]
        if len(self._handles) >= MOST_HANDLES:
            self.release()
        what()

    def park(self) -> None:
        nbytes = int(LARGEST_BYTES ** self._random.random()) or 1
        start = self._random.randrange(LARGEST_BYTES)
        tensor = self._noise[start : start + nbytes]
        keep = self._random.choice(("store", "store", "cache"))
        handle = self._timed("offload", lambda: self.client.offload(tensor, keep=keep))
        self.seen[f"parked_{handle.tier}"] += 1
        self._handles.append((handle, tensor, keep))

    def compare(self) -> None:
        if self._handles:
            self._compare(self._random.choice(self._handles))

    def compare_all(self) -> None:
        for one in tuple(self._handles):
            self._compare(one)

    def release(self) -> None:
        if self._handles:
            handle, _, _ = self._handles.pop(self._random.randrange(len(self._handles)))
            if self._random.random() < 0.5:  # else it is left to garbage collection
                self._timed("release", handle.release)

    def fork(self) -> None:
        """A child that can do nothing with the parent's leases, and lives on for a moment."""
        handles = self._handles[:1]
        pid = os.fork()
        if pid == 0:
            try:
                handles[0][0].fetch()
                os._exit(1)
            except IndexError:
                pass
            except aqua_client.ForkedChild:
                pass
            select.select([], [], [], self._random.random() * CHILD_SECONDS)
            os._exit(0)
        self._children.add(pid)
        self.seen["forks"] += 1

    def reap(self, *, is_last: bool = False) -> None:
        for pid in tuple(self._children):
            found, status = os.waitpid(pid, 0 if is_last else os.WNOHANG)
            if found:
                self._children.discard(pid)
                self.seen["children_failed"] += status != 0

    def heal(self) -> bool:
        """Whether leases can be had again in time."""
        deadline = time.monotonic() + HEAL_SECONDS
        while time.monotonic() < deadline:
            handle = self._timed("offload", lambda: self.client.offload(self._noise[:MIB]))
            tier = handle.tier
            self._compare((handle, self._noise[:MIB], "store"))
            handle.release()
            if tier == "peer":
                return True
            select.select([], [], [], 0.05)
        return False

    def end(self) -> None:
        self._handles.clear()
        self._timed("close", self.client.close)

    def _compare(self, one: tuple[aqua_client.OffloadedTensor, torch.Tensor, str]) -> None:
        handle, tensor, keep = one
        try:
            fetched = self._timed("fetch", handle.fetch)
        except aqua_client.LeaseLost:
            self.seen[f"lost_{keep}"] += 1
            if one in self._handles:
                self._handles.remove(one)
            return
        self.seen["fetched"] += 1
        self.seen["wrong"] += not torch.equal(fetched, tensor)

    def _timed(self, name: str, call: Callable[[], ResultT]) -> ResultT:
        started = time.monotonic()
        try:
            return call()
        finally:
            took = time.monotonic() - started
            self.slowest[name] = max(took, self.slowest.get(name, 0.0))


def main() -> None:
    warnings.simplefilter("ignore", aqua_client.AquaWarning)
    torch.set_num_threads(1)  # its pool of threads does not survive a fork
    parker = Parker(int(sys.argv[1]))
    pause_seconds = float(sys.argv[2]) if len(sys.argv) > 2 else PAUSE_SECONDS
    print(json.dumps({"pid": os.getpid()}), flush=True)
    while not select.select([sys.stdin], [], [], pause_seconds)[0]:
        parker.step()
        parker.reap()
    sys.stdin.readline()
    parker.compare_all()
    parker.reap(is_last=True)
    healed = parker.heal()
    report = {"healed": healed, "seen": parker.seen, "slowest": parker.slowest}
    print(json.dumps({**report, "stats": parker.client.stats()}), flush=True)
    sys.stdin.readline()
    parker.end()


if __name__ == "__main__":
    main()
