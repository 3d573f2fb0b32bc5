"""What a small tensor costs beside what people use now, and who is as fast as ours.

The goal is for parking alone, `offload` beside SET, `ray.put` or making a piece of shared memory,
which is what the rivals make expensive; a tensor's whole life, parked, brought back and forgotten,
is beside it without a goal. Blocks that are parked a thousand at a time, in a pool, stand beside one
MSET of as many; what else is made for each stands beside a thousand in `in_numbers`. Each rival has its medians of its own rounds in this run, one after the other, on
one thread. With each is what a 26th of it would be, and one copy of the bytes: where that is more,
nobody who copies can be so much cheaper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

import aqua_client
from tests.benchmarks import in_numbers
from tests.benchmarks.figure import Figure
from tests.benchmarks.rivals import memory, programs
from tests.benchmarks.rivals.programs import Answer, NotHere
from tests.benchmarks.rivals.rounds import medians_us
from tests.benchmarks.threads import one_thread

SUBJECT = "small tensors"
KIB = 2**10
SIZES = (4 * KIB, 16 * KIB, 64 * KIB)
NBYTES = SIZES[-1]
LARGE = 256 * 2**20
BATCH = 1000
CHEAPER = 26.0
ROUNDS = 400
LARGE_ROUNDS = 12

PARKING = ("park_us",)
WHOLE_LIFE = ("park_us", "back_us", "forget_us")

Medians = Mapping[str, float]  # of these steps
Rival = Callable[[torch.Tensor, torch.Tensor], Medians]  # of a source and where it comes back to


def measure(socket: str) -> Iterator[Figure]:
    """Measure against the node at *socket*, and the rivals, ours anew beside each of them."""
    with one_thread(), aqua_client.connect(socket=socket, home_gpu="SHM-0") as client:
        contests = [_Contest(client, nbytes) for nbytes in SIZES]
        for one in contests:
            yield from one.expensive("shared memory made for each", memory.shared_memory_made)
            yield from one.expensive("a memfd made for each", memory.memfd_made)
        yield from in_numbers.measure(client)
        try:
            redis = programs.redis(SIZES, BATCH)
        except NotHere as why:
            yield _not_here("Redis, Unix socket", why)
        else:
            for one in contests:
                yield from one.expensive("SET of Redis, Unix socket", _said(redis, one.nbytes))
            for one in contests:
                yield _batch(client, one.nbytes, redis[f"batch {one.nbytes}"]["park_us"])
        small = contests[-1]
        try:
            ray = programs.ray(NBYTES, LARGE)
        except NotHere as why:
            yield _not_here("Ray", why)
        else:
            yield from small.expensive("Ray, a torch tensor", lambda _source, _out: ray["default"])
            yield from small.expensive("Ray, a numpy array", lambda _source, _out: ray["zero_copy"])
            yield _large(client, ray)
        yield small.equal("a touched buffer", memory.touched_buffer)
        yield small.equal("shared memory reused", memory.shared_memory_reused)


class _Contest:
    """Ours against one rival after the other."""

    def __init__(self, client: aqua_client.Client, nbytes: int) -> None:
        self.nbytes = nbytes
        self._client = client
        self._source = torch.randint(0, 256, (nbytes,), dtype=torch.uint8)
        self._out = torch.zeros_like(self._source)

    def expensive(self, name: str, rival: Rival) -> Iterator[Figure]:
        """One that is to be beaten."""
        own, other = self._both(rival)
        copy = memory.touched_buffer(self._source, self._out)
        for what, steps, goal in (
            ("parked alone", PARKING, CHEAPER),
            ("whole life", WHOLE_LIFE, None),
        ):
            own_us, other_us, copy_us = (
                sum(one[step] for step in steps) for one in (own, other, copy)
            )
            yield Figure(
                subject=SUBJECT,
                name=f"{_in_words(self.nbytes)} {what}, beside {name}",
                value=other_us / own_us,
                unit="times cheaper",
                rival=_beside(own_us, other_us, copy_us),
                at_least=goal,
            )

    def equal(self, name: str, rival: Rival) -> Figure:
        """One that is as fast as ours, or faster."""
        own, other = self._both(rival)
        return Figure(
            subject=SUBJECT,
            name=f"{_in_words(self.nbytes)} parked, where we do not win: {name}",
            value=own["park_us"],
            unit="us",
            rival=f"{other['park_us']:,.1f} us",
        )

    def _both(self, rival: Rival) -> tuple[Medians, Medians]:
        own = _ours(self._client, self._source, self._out, ROUNDS)
        return own, rival(self._source, self._out)


def _ours(
    client: aqua_client.Client, source: torch.Tensor, out: torch.Tensor, rounds: int
) -> Medians:
    medians = medians_us(
        lambda: client.offload(source),
        lambda handle: handle.fetch(out=out),
        lambda handle: handle.release(),
        rounds=rounds,
    )
    assert torch.equal(out, source), "the figures are of bytes that did not come back"
    return medians


def _said(answer: Answer, nbytes: int) -> Rival:
    return lambda _source, _out: answer[f"each {nbytes}"]


def _batch(client: aqua_client.Client, nbytes: int, redis_us: float) -> Figure:
    """Scattered blocks parked in one step; all figures are of one block."""
    cache = torch.randint(0, 256, (2 * BATCH, nbytes), dtype=torch.uint8)
    ids = torch.randperm(2 * BATCH)[:BATCH]
    kept = cache[ids]
    pool = client.pool((nbytes,), cache.dtype)
    own = medians_us(
        lambda: pool.store(cache, ids),
        lambda slots: pool.load(slots, cache, ids),
        lambda slots: slots.release(),
        rounds=programs.BATCH_ROUNDS,
    )
    assert torch.equal(cache[ids], kept), "the figures are of bytes that did not come back"
    copy = memory.touched_buffer(kept, torch.zeros_like(kept), rounds=programs.BATCH_ROUNDS)
    own_us, copy_us = (one["park_us"] / BATCH for one in (own, copy))
    return Figure(
        subject=SUBJECT,
        name=f"{BATCH:,} blocks of {_in_words(nbytes)} parked in a pool, each, beside one MSET",
        value=redis_us / BATCH / own_us,
        unit="times cheaper",
        rival=_beside(own_us, redis_us / BATCH, copy_us),
        at_least=CHEAPER,
    )


def _large(client: aqua_client.Client, ray: Answer) -> Figure:
    """Bandwidth that nobody wins: warm, and Ray needs no copy to come back."""
    big = torch.randint(0, 256, (LARGE,), dtype=torch.uint8)
    ours = _ours(client, big, torch.zeros_like(big), LARGE_ROUNDS)
    speed, rival, copy = (
        LARGE / one["park_us"] / 1e3 for one in (ours, ray["zero_copy_large"], ray["copy_large"])
    )
    back_ms = ray["zero_copy_large"]["back_us"] / 1e3
    return Figure(
        subject=SUBJECT,
        name="256 MiB parked, where we do not win: warm zero-copy Ray",
        value=speed,
        unit="GB/s",
        rival=f"{rival:.1f} GB/s, back in {back_ms:.1f} ms without a copy; `copy_` {copy:.1f} GB/s",
    )


def _not_here(name: str, why: NotHere) -> Figure:
    return Figure(
        subject=SUBJECT,
        name=f"64 KiB parked alone, beside {name}",
        value=None,
        unit="times cheaper",
        at_least=CHEAPER,
        why_not=str(why),
    )


def _beside(own_us: float, other_us: float, copy_us: float) -> str:
    return (
        f"{other_us:,.1f} us, ours {own_us:,.1f} us; a {CHEAPER:.0f}th of it "
        f"{other_us / CHEAPER:,.1f} us, `copy_` {copy_us:,.1f} us"
    )


def _in_words(nbytes: int) -> str:
    return f"{nbytes // KIB} KiB"
