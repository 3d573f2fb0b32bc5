"""Measures, once a process and device, which way of copying many blocks is the quickest there.

Story: a pool's first store on a device begins it, in a thread of the library's own and on a stream of
its own, so that nobody waits; a client that closes waits for a round of copies at most. Blocks of
several sizes and counts go from scratch memory to a place in a slab and back, by each way; a way that
fails, or does not give the right bytes, is in no table. It takes 32 MiB of the device and some
milliseconds of its time, and is left out where there is no room, or no slab. Does not cover choosing
(`crossover`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

import torch

from aqua_client import awaiting
from aqua_client.copying import Range
from aqua_client.crossover import Crossover, Measured, Way
from aqua_client.errors import AquaError
from aqua_client.pager import Pager
from aqua_client.records import SafetyClass
from aqua_client.rows import Rows
from aqua_client.slabs import Place
from aqua_client.streams import Streams

# What is copied lies in so much scratch memory; from one size to the next ways overtake each other.
SCRATCH_BYTES = 16 * 2**20
POINTS = tuple(
    (block_bytes, count)
    for block_bytes in (16 * 2**10, 128 * 2**10, 2**20)
    for count in (8, 64, 512)
    if block_bytes * count <= SCRATCH_BYTES // 2  # scattered over twice as many
)
ROUNDS = 5  # the quickest of them: another thread's turn is no part of a way

logger = logging.getLogger("aqua")


def begin_once(pager: Pager, device: torch.device, safety: SafetyClass) -> None:
    """Measure in the background, where nobody has; what parks *safety* blocks has a slab for it."""
    streams = pager.streams
    if streams is None or device in _begun:
        return
    crossover = streams.crossover(device)
    if crossover is None:
        return
    _begun.add(device)
    try:
        awaiting.in_background(
            lambda: _fill(crossover, pager, streams, device, safety), device=device
        )
    except RuntimeError:  # the process may have no more threads
        return


def _fill(
    crossover: Crossover,
    pager: Pager,
    streams: Streams,
    device: torch.device,
    safety: SafetyClass,
) -> None:
    """Never raises: without a table there is a default."""
    try:
        crossover.measured = tuple(_measured(pager, streams, device, safety))
    except (_Closed, AquaError, MemoryError, RuntimeError) as error:
        logger.info("ways of copying blocks are not measured on %s: %s", device, error)
        if pager.is_closed:
            _begun.discard(device)  # the next client measures
    else:
        logger.info("ways of copying blocks on %s, us: %s", device, crossover.told())


def _measured(
    pager: Pager, streams: Streams, device: torch.device, safety: SafetyClass
) -> list[Measured]:
    found: list[Measured] = []
    stored = pager.reserve(SCRATCH_BYTES // 2, safety)
    try:
        place = stored.reserved[0]
        if len(stored.reserved) == 1 and place.memory.opened_on is not None:
            with streams.measuring(device) as wait, torch.inference_mode(mode=False):
                bench = _Bench(pager, streams, device, place, wait)
                found += [bench.point(block_bytes, count) for block_bytes, count in POINTS]
    finally:
        pager.discard(stored)  # all has been waited for
    return found


class _Closed(Exception):
    """The client has closed: half a table is none, and its slab is to go back. Never leaves."""


class _Bench:
    """Scratch memory, a place in a slab, and a stream on which everything is done."""

    def __init__(
        self,
        pager: Pager,
        streams: Streams,
        device: torch.device,
        place: Place,
        wait: Callable[[], None],
    ) -> None:
        self._pager = pager
        self._streams = streams
        self._place = place
        self._wait_for_all = wait
        self._scratch = torch.empty(SCRATCH_BYTES, dtype=torch.uint8, device=device)

    def point(self, block_bytes: int, count: int) -> Measured:
        """By each way that can and gives the right bytes, out and in again: their mean."""
        cache = self._scratch.view(-1, block_bytes)
        span = Range(self._place.memory, self._place.offset, block_bytes * count)
        ids = torch.randperm(len(cache), device="cpu")[:count]
        seconds: dict[Way, float] = {}
        for way in Way:
            out, back = self._copies(way, Rows(cache, (block_bytes,), torch.uint8), ids, span)
            try:
                if self._is_right(cache, ids, span, out, back):
                    seconds[way] = (self._seconds(out) + self._seconds(back)) / 2
                else:
                    logger.warning("copying blocks by %s gives other bytes: it is not used", way)
            except (AquaError, RuntimeError) as error:
                logger.info("blocks are not copied by %s: %s", way, error)
        return Measured(block_bytes=block_bytes, count=count, seconds=seconds)

    def _wait(self) -> None:
        """For all that is enqueued; closing waits for no more than that."""
        self._wait_for_all()
        if self._pager.is_closed:
            raise _Closed("the client has closed")

    def _copies(
        self, way: Way, rows: Rows, ids: torch.Tensor, span: Range
    ) -> tuple[Callable[[], None], Callable[[], None]]:
        """Out and in; what they need is made ready in each, as in a pool's calls."""
        streams = self._streams
        if way is Way.TORCH:
            return (
                lambda: rows.write_by_torch(ids, [span], streams),
                lambda: rows.read_by_torch([span], ids, streams),
            )
        return (
            lambda: streams.copy_by(way, rows.device, rows.pieces(ids, [span])[:, [1, 0, 2]]),
            lambda: streams.copy_by(way, rows.device, rows.pieces(ids, [span])),
        )

    def _is_right(
        self,
        cache: torch.Tensor,
        ids: torch.Tensor,
        span: Range,
        out: Callable[[], None],
        back: Callable[[], None],
    ) -> bool:
        """Whether the bytes arrive, there and back, and no others change."""
        there = span.memory.view(torch.uint8)[span.offset : span.offset + span.nbytes]
        places = ids.to(cache.device)
        cache.random_(0, 256)
        there.zero_()
        before = cache.clone()
        self._wait()
        out()
        self._wait()
        has_arrived = torch.equal(there.view(len(ids), -1), cache[places])
        cache[places] = 0
        self._wait()
        back()
        self._wait()
        return has_arrived and torch.equal(cache, before)

    def _seconds(self, work: Callable[[], None]) -> float:
        taken: list[float] = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            work()
            self._wait()
            taken.append(time.perf_counter() - began)
        return min(taken)


_begun: set[torch.device] = set()

os.register_at_fork(after_in_child=_begun.clear)
