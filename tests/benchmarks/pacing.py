"""Copies made as slow as a named link: for machines whose lender and borrower share one memory.

    with paced(375e9):
        ...  # what the library copies to and from slabs takes at least as long as over that link

A GPU that lends to itself copies within its own memory, faster than any link between two. Each copy
is followed by what is missing of its time, on the device's own clock and stream where it is a GPU's,
so that what is hidden behind computing stays hidden. Copies to and from host memory are not paced.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from aqua_client import copying
from aqua_client.copying import Span
from aqua_client.rows import Rows

CALIBRATED_CYCLES = 50_000_000
LEAST_SECONDS = 20e-6  # that a wait on the CPU can tell from none


class _Pace:
    """Knows how long bytes take, and makes up for what they did not."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._is_gpu = torch.cuda.is_available()
        self._cycles_per_second = _cycles_per_second() if self._is_gpu else 0.0
        self._never = threading.Event()

    def copy(self, spans: Sequence[Span], copy: Callable[[], None]) -> None:
        """Copy, in as long as it takes over the link."""
        nbytes = sum(one.nbytes for one in spans if one.memory._mapped is not None)
        if not self._is_gpu:
            begin = time.perf_counter()
            copy()
            missing = nbytes / self._rate - (time.perf_counter() - begin)
            if missing > LEAST_SECONDS:
                self._never.wait(missing)
            return
        # What the copy itself takes is a small part of it, and is not taken off: the device knows it,
        # and asking would make the caller wait.
        copy()
        if nbytes and not torch.cuda.is_current_stream_capturing():
            torch.cuda._sleep(int(nbytes / self._rate * self._cycles_per_second))


@contextmanager
def paced(bytes_per_second: float | None) -> Iterator[None]:
    """Within the block; None: as fast as they are. Not for two threads at a time."""
    if bytes_per_second is None:
        yield
        return
    pace = _Pace(bytes_per_second)
    places = ((copying, "write", 2), (copying, "read", 0), (Rows, "write", 2), (Rows, "read", 1))
    before = [getattr(owner, name) for owner, name, _ in places]
    for (owner, name, index), function in zip(places, before, strict=True):
        setattr(owner, name, _paced(pace, function, index))
    try:
        yield
    finally:
        for (owner, name, _), function in zip(places, before, strict=True):
            setattr(owner, name, function)


def _paced(pace: _Pace, function: Callable[..., None], index: int) -> Callable[..., None]:
    """The same, whose argument number *index* is the spans."""

    def call(*given: object, **named: object) -> None:
        spans: Sequence[Span] = given[index]  # type: ignore[assignment]
        pace.copy(spans, lambda: function(*given, **named))

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
