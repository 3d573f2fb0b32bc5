"""Brings a parked tensor back ahead of its fetch, in the background.

    handle.prefetch()
    ...  # compute
    tensor = handle.fetch()  # waits for what is missing only

Story of a prefetch: its memory is made at once; a thread of the library's own, or on CUDA a stream
of its own, copies into it as any fetch does, with pins that a revoke waits for; the next fetch
takes it, or reads by itself where it was not begun, or failed. What is parked stays where it is.
A client holds at most `MOST_BYTES` that were prefetched and not fetched yet; beyond that
prefetching does nothing. Where the parked bytes are lost meanwhile the fetch still gives those
that came before. Does not cover the threads (`awaiting`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch

from aqua_client import awaiting, copying, enqueuing
from aqua_client.errors import AquaError
from aqua_client.layouts import Layout
from aqua_client.pager import Pager
from aqua_client.slabs import Prefetched, Stored
from aqua_client.streams import Event
from aqua_client.timing import began_by, timed

# What waits to be fetched takes memory from the computation that runs meanwhile.
MOST_BYTES = 2**30


class _NotWanted(AquaError):
    """Nobody will fetch it any more. Never leaves the library."""


def begin(pager: Pager, stored: Stored, layout: Layout) -> None:
    """Start bringing *stored* back, unless that was done or there is no room for it.

    Raises:
        HandleReleased, LeaseLost, InvalidRequest, ForkedChild: as a fetch would.
    """
    streams = pager.streams
    pager.check_not_forked()
    if streams is not None:
        streams.check_not_capturing()
    if not pager.may_prefetch(stored, most_bytes=MOST_BYTES):
        return
    try:
        with torch.inference_mode(mode=False):  # so that it can be used outside of it too
            prefetched = Prefetched(copying.new_tensor(layout))
    except (MemoryError, RuntimeError):  # by the time of the fetch there may be room
        return
    if not pager.begin_prefetch(stored, prefetched, most_bytes=MOST_BYTES):
        return

    def run() -> None:
        _run(prefetched, lambda: _read(pager, stored, layout, prefetched.target))

    if streams is not None and streams.concern(layout.device) and stored.tier == "peer":
        run()  # which only enqueues
        return
    try:
        awaiting.in_background(run, device=layout.device)
    except RuntimeError:  # the process may have no more threads
        prefetched.done.cancel()


def take(pager: Pager, stored: Stored) -> torch.Tensor | None:
    """What was prefetched, as soon as it is there; None: there is nothing, and it is to be read.

    On CUDA the current stream waits for it, not the caller.

    Raises:
        HandleReleased, ForkedChild: as a fetch would.
    """
    prefetched = pager.take_prefetched(stored)
    if prefetched is None or prefetched.done.cancel() or prefetched.done.exception() is not None:
        return None
    event = prefetched.done.result()
    if event is not None:
        event.wait_on_current_stream()
    if pager.streams is not None:
        pager.streams.used_here(prefetched.target)
    pager.count_fetch()
    return prefetched.target


def _run(prefetched: Prefetched, read: Callable[[], Event | None]) -> None:
    if not prefetched.done.set_running_or_notify_cancel():
        return
    try:
        prefetched.done.set_result(read())
    except BaseException as error:
        prefetched.done.set_exception(error)
        if not isinstance(error, Exception):  # whoever fetches meets others again, by itself
            raise


def _read(pager: Pager, stored: Stored, layout: Layout, target: torch.Tensor) -> Event | None:
    streams = pager.streams

    def check_wanted() -> None:
        # A client that closes, as all do at the end of a process, waits for pins, but not long.
        if stored.is_released or pager.is_closed:
            raise _NotWanted

    check_wanted()
    is_aside = streams is not None and streams.concern(layout.device)
    with streams.aside(target, inward=True) if streams and is_aside else nullcontext():
        places = pager.pin(stored)
        try:
            if streams is not None:
                enqueuing.come_after(streams, stored.event, layout.device, places)
            timer = None if streams is None else timed(streams, places)
            copying.read(places, layout, target, timer or streams, check=check_wanted)
            event = None
            if streams is not None:
                since = began_by(timer)
                event = enqueuing.end(streams, layout.device, places, since=since)
            pager.unpin(places, is_read=True, event=event, is_ahead=True)
        except BaseException:
            event = None if streams is None else enqueuing.some_end(streams, layout.device, places)
            pager.unpin(places, is_read=False, event=event)
            raise
    return event
