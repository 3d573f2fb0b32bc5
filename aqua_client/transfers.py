"""Stores and loads pieces together: all of them, or nothing has changed.

What `tensors` does for one tensor in as few steps as can be, for whoever has several, or copies in
a way of their own: reserve or pin everything, copy, let go. Does not cover how bytes are copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from time import perf_counter_ns
from typing import TypeVar

import torch

from aqua_client import enqueuing
from aqua_client.counters import LEAST_TIMED_BYTES
from aqua_client.pager import Pager
from aqua_client.records import SafetyClass
from aqua_client.slabs import Place, Stored
from aqua_client.streams import Enqueuer, Event
from aqua_client.timing import Timed, began_by, timed

# Given the places of each piece, in the order of the pieces.
Copy = Callable[[Sequence[Sequence[Place]]], None]
# The same, and who enqueues it.
ReadingCopy = Callable[[Sequence[Sequence[Place]], Enqueuer | None], None]

# In one step: enough that the lock costs little, few enough that nobody waits for it.
TOGETHER = 64

HandlesT = TypeVar("HandlesT")


def store(
    pager: Pager,
    sizes: Sequence[int],
    devices: Sequence[torch.device],
    *,
    safety: SafetyClass,
    copy: Copy,
    make: Callable[[list[Stored]], HandlesT],
) -> HandlesT:
    """Let *copy* write pieces of *sizes* bytes, which come from *devices*; *make* their handles.

    Raises:
        InsufficientMemory: there is no room for all of them; nothing is stored.
        InvalidRequest: a CUDA graph is being captured.
    """
    check_may_copy(pager)
    reservations: list[Stored] = []
    try:
        for begin in range(0, len(sizes), TOGETHER):
            some = sizes[begin : begin + TOGETHER]
            reservations += pager.reserve_together(some, safety) if len(some) > 1 else []
            for nbytes in sizes[len(reservations) : begin + len(some)]:
                reservations.append(pager.reserve(nbytes, safety))
        places = [one.reserved for one in reservations]
        copy(places)
        events = _ends(pager, devices, places)
        return make(pager.written_together(reservations, events))
    except BaseException:
        for device, one in zip(devices, reservations, strict=False):  # not all may be there
            pager.discard(one, _some_end(pager, device, one.reserved))
        raise


def load(
    pager: Pager, pieces: Sequence[Stored], devices: Sequence[torch.device], *, copy: ReadingCopy
) -> None:
    """Let *copy* read all *pieces*, into memory on *devices*.

    Raises:
        HandleReleased: one of them was released; nothing is read.
        LeaseLost: the bytes of one are gone; nothing is read.
        InvalidRequest: a CUDA graph is being captured.
    """
    check_may_copy(pager)
    started_at = perf_counter_ns()
    pinned: list[Sequence[Place]] = []
    try:
        for stored in pieces:
            pinned.append(pager.pin(stored))  # noqa: PERF401 - kept if one fails
        if pager.streams is not None:
            for stored, device, places in zip(pieces, devices, pinned, strict=True):
                enqueuing.come_after(pager.streams, stored.event, device, places)
        timer = _timer(pager, devices, pinned)
        copy(pinned, timer or pager.streams)
        events = _ends(pager, devices, pinned, since=began_by(timer))
        took = perf_counter_ns() - started_at
        is_timed = len(pieces) == 1 and pieces[0].nbytes >= LEAST_TIMED_BYTES
        for places, event in zip(pinned, events, strict=True):
            nanoseconds = took if is_timed and event is None else 0
            pager.unpin(places, is_read=True, nanoseconds=nanoseconds, event=event)
    except BaseException:
        for device, places in zip(devices, pinned, strict=False):
            event = _some_end(pager, device, places)
            pager.unpin(places, is_read=False, event=event)
        raise


def check_may_copy(pager: Pager) -> None:
    """Raise ForkedChild or, while a CUDA graph is being captured, InvalidRequest."""
    pager.check_not_forked()
    if pager.streams is not None:
        pager.streams.check_not_capturing()


def _timer(
    pager: Pager, devices: Sequence[torch.device], places: Sequence[Sequence[Place]]
) -> Timed | None:
    """None: what they take on one device says nothing of one link, or there is none."""
    streams = pager.streams
    if streams is None or len({*devices}) != 1 or not streams.concern(devices[0]):
        return None
    return timed(streams, chain.from_iterable(places))


def _ends(
    pager: Pager,
    devices: Sequence[torch.device],
    places: Sequence[Sequence[Place]],
    *,
    since: Event | None = None,
) -> list[Event | None]:
    """Only the last is told to be the end of what has begun: it is to count once."""
    streams = pager.streams
    if streams is None:
        return [None] * len(places)
    pairs = [*zip(devices, places, strict=True)]
    ends = [enqueuing.end(streams, device, one) for device, one in pairs[:-1]]
    return ends + [enqueuing.end(streams, device, one, since=since) for device, one in pairs[-1:]]


def _some_end(pager: Pager, device: torch.device, places: Sequence[Place]) -> Event | None:
    return None if pager.streams is None else enqueuing.some_end(pager.streams, device, places)
