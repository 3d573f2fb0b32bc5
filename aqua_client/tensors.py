"""A parked tensor, as the program that parked it sees it: fetch, look at, release.

    handle = client.offload(tensor)
    again = handle.fetch()
    handle.release()

Does not cover where the bytes are (`pager`), what a layout is (`layouts`), and what the rules of
streams are (`streams`); what is different where copies are only enqueued is `enqueuing`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import NoReturn

import torch

from aqua_client import awaiting, copying, enqueuing, prefetching
from aqua_client.counters import LEAST_TIMED_BYTES
from aqua_client.errors import HandleReleased, InvalidRequest
from aqua_client.layouts import Layout, check_out, layout_of
from aqua_client.pager import Pager
from aqua_client.records import SafetyClass
from aqua_client.slabs import Stored

_CLASSES = {one.value: one for one in SafetyClass}


def offload(
    pager: Pager,
    tensor: torch.Tensor,
    keep: str,
    *,
    overlap: bool = False,
    make: Callable[[Pager, Stored, Layout], OffloadedTensor] | None = None,
) -> OffloadedTensor:
    """Copy *tensor* into leased memory or the host's; its own memory is then the caller's to free.

    *make*: the handle, where it is to be one of another kind.

    Raises:
        UnsupportedTensor: it is not a dense tensor with bytes of its own.
        InvalidRequest: *keep* is neither "store" nor "cache", or a CUDA graph is being captured.
        InsufficientMemory: nowhere is room; the tensor is as it was.
    """
    layout = layout_of(tensor)
    safety = _CLASSES.get(keep) or safety_class(keep)
    if pager.streams is not None:
        return enqueuing.write(
            pager,
            pager.streams,
            tensor,
            layout,
            safety=safety,
            overlap=overlap,
            make=make or OffloadedTensor,
        )
    stored = pager.reserve(layout.nbytes, safety)
    try:  # to the end: until there is a handle, nobody else would give back what is stored
        copying.write(tensor, layout, stored.reserved)
        return (make or OffloadedTensor)(pager, pager.written(stored), layout)
    except BaseException:
        pager.discard(stored)
        raise


def safety_class(keep: str) -> SafetyClass:
    """The class that *keep* names.

    Raises:
        InvalidRequest: it is neither "store" nor "cache".
    """
    safety = _CLASSES.get(keep)
    if safety is None:
        raise InvalidRequest(f'keep={keep!r} is not allowed: "store" or "cache"')
    return safety


class OffloadedTensor:
    """A tensor that is parked. Fetch it as often as you like, until it is released.

    When the last reference goes, it is released too.
    """

    __slots__ = ("__weakref__", "_layout", "_pager", "_stored")

    def __init__(self, pager: Pager, stored: Stored, layout: Layout) -> None:
        """Made by `offload`."""
        self._pager = pager
        self._stored = stored
        self._layout = layout

    def fetch(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """A tensor of the same bytes, on the device that it came from; *out*, when it is given.

        A new tensor is a leaf that requires a gradient if the parked one did.

        Raises:
            HandleReleased: it was released, or the client closed.
            LeaseLost: the bytes are gone.
            InvalidRequest: *out* has another shape or dtype, or a CUDA graph is being captured.
        """
        layout = self._layout
        pager = self._pager
        started_at = perf_counter_ns() if layout.nbytes >= LEAST_TIMED_BYTES else 0
        if pager.streams is not None:
            pager.check_not_forked()
            pager.streams.check_not_capturing()
        if out is not None:
            check_out(out, layout)
        stored = self._stored
        source = None if stored.prefetched is None else prefetching.take(pager, stored)
        target = out
        if target is None:
            target = copying.new_tensor(layout) if source is None else source
        if source is None:
            self._read(target, started_at)
        elif source is not target:
            copying.copy_tensor(source, layout, target)
        if out is None and layout.requires_grad:
            target.requires_grad_()
        return target

    def prefetch(self) -> None:
        """Start to bring the bytes back, without waiting: the next `fetch` takes what has come.

        It takes memory on the handle's device at once, 1 GiB of a client's at most, and until the
        next `fetch` or the release; where there is no room it does nothing. Again: no effect.

            handle.prefetch()
            ...  # compute with something else
            tensor = handle.fetch()

        Raises:
            HandleReleased, LeaseLost, InvalidRequest: as `fetch`, and only where that would.
        """
        prefetching.begin(self._pager, self._stored, self._layout)

    async def fetch_async(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """`fetch` in a thread of the library's own, while the event loop goes on.

        Cancelled, it returns when nothing is written to *out* any more. On CUDA, `fetch` only
        enqueues, and so does this.
        """
        return await awaiting.in_thread(lambda: self.fetch(out), device=self.device)

    def _read(self, target: torch.Tensor, started_at: int) -> None:
        pager = self._pager
        if pager.streams is not None:
            enqueuing.read(pager, pager.streams, self._stored, self._layout, target)
            return
        places = pager.pin(self._stored)
        try:
            copying.read(places, self._layout, target)
            nanoseconds = perf_counter_ns() - started_at if started_at else 0
            pager.unpin(places, is_read=True, nanoseconds=nanoseconds)
        except BaseException:
            pager.unpin(places, is_read=False)
            raise

    def wait(self) -> None:
        """Let the current stream wait for `offload(overlap=True)`: then the tensor may be written.

        Does not wait itself, and does nothing where the copy is over.
        """
        self._pager.check_not_forked()
        enqueuing.wait(self._pager, self._stored)

    def release(self) -> None:
        """Give the memory back. May be called twice; fetching is over."""
        self._pager.release(self._stored)

    @property
    def tier(self) -> str:
        """Where the bytes are now: `peer`, `host` or `mixed`; `lost` when they are gone."""
        if self._stored.is_released:
            raise HandleReleased("the handle was released: it is in no tier")
        return self._stored.tier

    @property
    def reason(self) -> str:
        """Why some of it is not in leased memory, or lost: no_daemon, no_room, ...; else empty."""
        return self._stored.reason

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self._layout.nbytes

    @property
    def shape(self) -> torch.Size:
        """Of the tensor."""
        return self._layout.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensor."""
        return self._layout.dtype

    @property
    def device(self) -> torch.device:
        """Where the tensor was, and where `fetch` puts it."""
        return self._layout.device

    def __repr__(self) -> str:
        state = "released" if self._stored.is_released else self._stored.tier
        shape, dtype = tuple(self.shape), self.dtype
        return f"<OffloadedTensor {shape} {dtype}, {self.nbytes} bytes, {state}>"

    def __reduce__(self) -> NoReturn:
        raise InvalidRequest(
            "a parked tensor can't be copied or sent to another process: its bytes are this "
            "process's leases; send handle.fetch() instead"
        )

    def __del__(self) -> None:
        # Garbage collection may run anywhere, also inside the pager's lock.
        try:
            stored, pager = self._stored, self._pager
        except AttributeError:  # an interrupt came before they were set
            return
        if not stored.is_released:
            pager.release_later(stored)
