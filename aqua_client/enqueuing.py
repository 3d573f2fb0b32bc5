"""Offload and fetch where copies may only be enqueued: what is different on CUDA.

The order is the same as without: reserve or pin, copy, let go. But what is let go of is what the
copy's event holds, also when the copy fails half-way: a part of it may have been enqueued.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from time import perf_counter_ns
from typing import TypeVar

import torch

from aqua_client import copying
from aqua_client.counters import LEAST_TIMED_BYTES
from aqua_client.layouts import Layout
from aqua_client.pager import Pager
from aqua_client.records import SafetyClass
from aqua_client.slabs import Place, Stored
from aqua_client.streams import Copier, Enqueuer, Event, Never, Piece, Streams
from aqua_client.timing import began_by, timed

HandleT = TypeVar("HandleT")


class Together:
    """Copies of several tensors, enqueued all at once: by one call where that is the quickest."""

    def __init__(self, streams: Enqueuer) -> None:
        """Nothing is enqueued before `flush`."""
        self._streams = streams
        self._pieces: dict[torch.device, list[Piece]] = {}

    def concern(self, device: torch.device) -> bool:
        """As the streams say."""
        return self._streams.concern(device)

    def copy(self, device: torch.device, pieces: Sequence[Piece]) -> bool:
        """Noted, for now."""
        self._pieces.setdefault(device, []).extend(pieces)
        return True

    def flush(self) -> bool:
        """Whether all of them are enqueued; otherwise torch is to copy everything."""
        pairs = self._pieces.items()
        return all(self._streams.copy(device, pieces) for device, pieces in pairs)


def together(streams: Enqueuer | None, copy: Callable[[Copier | None], None]) -> None:
    """Let *copy* do its copies, those that need no torch all at once."""
    if streams is None:
        copy(None)
        return
    all_of_them = Together(streams)
    copy(all_of_them)
    if not all_of_them.flush():
        copy(None)


def write(
    pager: Pager,
    streams: Streams,
    tensor: torch.Tensor,
    layout: Layout,
    *,
    safety: SafetyClass,
    overlap: bool,
    make: Callable[[Pager, Stored, Layout], HandleT],
) -> HandleT:
    """Offload *tensor*; with *overlap* beside the current stream. *make* makes the handle."""
    pager.check_not_forked()
    streams.check_not_capturing()
    is_aside = overlap and streams.concern(layout.device)
    with streams.aside(tensor, inward=False) if is_aside else nullcontext():
        stored = pager.reserve(layout.nbytes, safety)
        try:
            copying.write(tensor, layout, stored.reserved, streams)
            event = end(streams, layout.device, stored.reserved)
            if event is not None and not is_aside:
                streams.used_here(tensor)  # it may have been made under another stream
            return make(pager, pager.written(stored, event), layout)
        except BaseException:
            pager.discard(stored, some_end(streams, layout.device, stored.reserved))
            raise


def read(
    pager: Pager, streams: Streams, stored: Stored, layout: Layout, target: torch.Tensor
) -> None:
    """Fetch into *target*, after what is stored has been written."""
    started_at = perf_counter_ns()
    places = pager.pin(stored)
    try:
        come_after(streams, stored.event, target.device, places)
        timer = timed(streams, places)
        copying.read(places, layout, target, timer or streams)
        event = end(streams, target.device, places, since=began_by(timer))
        is_timed = event is None and layout.nbytes >= LEAST_TIMED_BYTES
        nanoseconds = perf_counter_ns() - started_at if is_timed else 0
        pager.unpin(places, is_read=True, nanoseconds=nanoseconds, event=event)
    except BaseException:
        event = some_end(streams, target.device, places)
        pager.unpin(places, is_read=False, event=event)
        raise


def come_after(
    streams: Streams, written: Event | None, device: torch.device, places: Sequence[Place]
) -> None:
    """What is read from *places* into memory of *device* comes after the writing."""
    if written is None:
        return
    written.wait_on_current_stream()
    if any(place.memory.is_pinned for place in places) and not streams.concern(device):
        written.wait()  # the caller itself moves the bytes, in no stream's order


def used_here(streams: Streams | None, sources: Sequence[torch.Tensor]) -> None:
    """They may have been made under another stream, and may go before the copies are over."""
    if streams is not None:
        for source in sources:
            streams.used_here(source)


def wait(pager: Pager, stored: Stored) -> None:
    """Let the current stream wait for the writing of *stored*."""
    written = stored.event
    if pager.streams is not None and written is not None:
        pager.streams.check_not_capturing()
        written.wait_on_current_stream()


def end(
    streams: Streams,
    device: torch.device,
    places: Sequence[Place],
    *,
    since: Event | None = None,
) -> Event | None:
    """The event of what is enqueued so far; None where copies are done on return."""
    if not streams.concern(device):
        return None
    opened = [place.memory.opened_on for place in places]
    return streams.record(device, [one for one in opened if one is not None], since=since)


def some_end(streams: Streams, device: torch.device, places: Sequence[Place]) -> Event | None:
    """The same after a failure: where it can't be known, there is none."""
    try:
        return end(streams, device, places)
    except RuntimeError:
        return Never()
