"""Copies made as slow as a named link: for machines whose lender and borrower share one memory.

    with paced(375e9) as pace:
        ...  # what the library copies to and from slabs takes at least as long as over that link
        pace.wait(nbytes)  # and so does what somebody else has copied

A GPU that lends to itself copies within its own memory, faster than any link between two. Each copy
is followed by what is missing of its time, on the device's own clock and stream where it is a GPU's,
so that what is hidden behind computing stays hidden. Copies to and from host memory are not paced but
where that is asked for: on shm GPUs, whose memory is the host's, it makes the two differ as they would.

A model of a link, no measurement of one: it has one rate, no latency, and carries one copy at a time
each way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from aqua_client import copying
from aqua_client.copying import Span
from aqua_client.rows import Rows

CALIBRATED_CYCLES = 50_000_000
LEAST_SECONDS = 20e-6  # that a wait on the CPU can tell from none
ROWS_WITHOUT_STREAMS = 3  # arguments of a copy of rows that no client asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """In bytes a second, each way; None: as fast as it is."""

    leases: float | None = None
    host: float | None = None

    def seconds(self, spans: Sequence[Span]) -> float:
        """That a copy to or from these takes at least."""
        taken = 0.0
        for one in spans:
            rate = self.host if one.memory._mapped is None else self.leases
            taken += one.nbytes / rate if rate else 0.0
        return taken


AS_IT_IS = Rates()


class Pace:
    """Knows how long bytes take, and makes up for what they did not."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._is_gpu = torch.cuda.is_available()
        self._cycles_per_second = _cycles_per_second() if self._is_gpu else 0.0
        self._never = threading.Event()
        self._ways = {name: threading.Lock() for name in ("write", "read")}

    def copy(self, way: str, spans: Sequence[Span], copy: Callable[[], None]) -> None:
        """Copy, in as long as it takes over the link."""
        seconds = self._rates.seconds(spans)
        if not self._is_gpu:
            with self._ways[way]:
                begin = time.perf_counter()
                copy()
                self._wait(seconds - (time.perf_counter() - begin))
            return
        # What the copy itself takes is a small part of it, and is not taken off: the device knows it,
        # and asking would make the caller wait.
        copy()
        if seconds and not torch.cuda.is_current_stream_capturing():
            self._wait(seconds)

    def wait(self, nbytes: int) -> None:
        """As long as so many bytes of leases take: the current stream, or without one the caller."""
        self._wait(nbytes / self._rates.leases if self._rates.leases else 0.0)

    def _wait(self, seconds: float) -> None:
        if self._is_gpu:
            torch.cuda._sleep(int(seconds * self._cycles_per_second))
        elif seconds > LEAST_SECONDS:
            self._never.wait(seconds)


@contextmanager
def paced(rates: Rates | float | None) -> Iterator[Pace | None]:
    """Within the block; one rate is that of leases, in bytes a second. Not for two threads at a time."""
    chosen = rates if isinstance(rates, Rates) else Rates(leases=rates)
    if chosen == AS_IT_IS:
        yield None
        return
    pace = Pace(chosen)
    places = ((copying, "write", 2), (copying, "read", 0), (Rows, "write", 2), (Rows, "read", 1))
    before = [getattr(owner, name) for owner, name, _ in places]
    for (owner, name, index), function in zip(places, before, strict=True):
        setattr(owner, name, _paced(pace, owner, function, index))
    try:
        yield pace
    finally:
        for (owner, name, _), function in zip(places, before, strict=True):
            setattr(owner, name, function)


def _paced(
    pace: Pace, owner: object, function: Callable[..., None], index: int
) -> Callable[..., None]:
    """The same, whose argument number *index* is the spans."""

    def call(*given: object, **named: object) -> None:
        if owner is Rows and len(given) <= ROWS_WITHOUT_STREAMS:  # within the device: brought ahead
            function(*given, **named)
            return
        spans: Sequence[Span] = given[index]  # type: ignore[assignment]
        pace.copy(function.__name__, spans, lambda: function(*given, **named))

    return call


def _cycles_per_second() -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(CALIBRATED_CYCLES)  # the clock speeds up at first
    begin.record()
    torch.cuda._sleep(CALIBRATED_CYCLES)
    end.record()
    torch.cuda.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return CALIBRATED_CYCLES / (milliseconds / 1e3)
