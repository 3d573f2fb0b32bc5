"""What a small tensor costs beside what people use now, and who is as fast as ours.

The goal is for parking one tensor, which is what the rivals make expensive; its whole life, parked,
brought back and forgotten, is beside it without a goal. Each rival has its medians of its own
rounds in this run, one after the other, on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

import aqua_client
from tests.benchmarks.figure import Figure
from tests.benchmarks.rivals import memory, programs
from tests.benchmarks.rivals.programs import Answer, NotHere
from tests.benchmarks.rivals.rounds import medians_us
from tests.benchmarks.threads import one_thread

SUBJECT = "small tensors"
NBYTES = 64 * 2**10
LARGE = 256 * 2**20
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
        small = _Contest(client, torch.randint(0, 256, (NBYTES,), dtype=torch.uint8))
        yield from small.expensive("shared memory made for each", memory.shared_memory_made)
        yield from small.expensive("a memfd made for each", memory.memfd_made)
        try:
            redis = programs.redis(NBYTES)["redis"]
        except NotHere as why:
            yield _not_here("Redis, Unix socket", why)
        else:
            yield from small.expensive("Redis, Unix socket", lambda _source, _out: redis)
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

    def __init__(self, client: aqua_client.Client, source: torch.Tensor) -> None:
        self._client = client
        self._source = source
        self._out = torch.zeros_like(source)

    def expensive(self, name: str, rival: Rival) -> Iterator[Figure]:
        """One that is to be beaten."""
        own, other = self._both(rival)
        for what, steps, goal in (("parked", PARKING, CHEAPER), ("whole life", WHOLE_LIFE, None)):
            own_us, other_us = (sum(one[step] for step in steps) for one in (own, other))
            yield Figure(
                subject=SUBJECT,
                name=f"64 KiB {what}, beside {name}",
                value=other_us / own_us,
                unit="times cheaper",
                rival=f"{other_us:,.1f} us, ours {own_us:,.1f} us",
                at_least=goal,
            )

    def equal(self, name: str, rival: Rival) -> Figure:
        """One that is as fast as ours, or faster."""
        own, other = self._both(rival)
        return Figure(
            subject=SUBJECT,
            name=f"64 KiB parked, where we do not win: {name}",
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
        name=f"64 KiB parked, beside {name}",
        value=None,
        unit="times cheaper",
        at_least=CHEAPER,
        why_not=str(why),
    )
