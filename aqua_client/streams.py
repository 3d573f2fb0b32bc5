"""What the client needs of CUDA streams: whose turn a copy is, and when it is over.

`Event` and `Streams` are all that the rest of the client knows of them, so that its rules are
tested without a GPU; `CudaStreams` is what they are with one. The rules:

1. A copy is enqueued on the caller's current stream, or on a side stream that waits for it.
2. Its event holds the pins: nothing it touches is freed, moved or unmapped before that is done.
3. On a stream that is being captured nothing is enqueued: a graph would replay it with addresses
   that have long been given back.
4. Whatever is asked of an event is asked in the relaxed capture mode: otherwise one question ends
   the capture that a server does in another thread.

Does not cover who keeps the pins (`in_flight`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

from aqua_client import cuda_driver
from aqua_client.errors import InvalidRequest


class Event(Protocol):
    """The end of a copy that was enqueued."""

    def is_done(self) -> bool:
        """Whether it is over. Never waits; raises RuntimeError when the device has failed."""

    def wait_on_current_stream(self) -> None:
        """Let what is enqueued from now on come after it. The caller itself does not wait."""


class Streams(Protocol):
    """One a client."""

    def concern(self, device: torch.device) -> bool:
        """Whether copies of tensors there are enqueued, not done on return."""

    def check_not_capturing(self) -> None:
        """Raise InvalidRequest while the current stream is being captured."""

    def record(self, device: torch.device, ordinals: Sequence[int]) -> Event | None:
        """The end of what is enqueued so far on the current stream of a tensor's device.

        *ordinals* are the devices of the slabs that it was copied to or from. None: there is
        nothing to wait for. RuntimeError: it can't be known.
        """

    def aside(self, tensor: torch.Tensor) -> AbstractContextManager[None]:
        """Enqueue copies of *tensor* beside the current stream, after what that has been given."""

    def used_here(self, tensor: torch.Tensor) -> None:
        """The current stream uses a tensor that was made under another, perhaps."""

    def on_own_stream(self, ordinal: int) -> AbstractContextManager[None]:
        """Copy on a stream of the library's; all of it is over at the end of the block."""


class Never:
    """The end of a copy of which nothing can be known: what it touches is never given back."""

    def is_done(self) -> bool:
        """It is not."""
        return False

    def wait_on_current_stream(self) -> None:
        """There is nothing to wait for."""


class CudaStreams:
    """torch's streams."""

    def __init__(self) -> None:
        self._side: dict[torch.device, torch.cuda.Stream] = {}
        self._own: dict[int, torch.cuda.Stream] = {}

    def concern(self, device: torch.device) -> bool:
        """CUDA's."""
        return device.type == "cuda"

    def check_not_capturing(self) -> None:
        """Does not touch CUDA in a process that does not use it."""
        if torch.cuda.is_initialized() and _is_capturing():
            raise InvalidRequest(
                "the current stream is being captured into a CUDA graph, and a lease's address "
                "must not outlive the lease in one: offload and fetch before or after the capture"
            )

    def record(self, device: torch.device, ordinals: Sequence[int]) -> Event | None:
        """On the tensor's device: torch makes its stream wait for copies from and to others."""
        if not ordinals:  # from and to the host torch has waited
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        return _CudaEvent(event, [torch.device("cuda", one) for one in {device.index, *ordinals}])

    @contextmanager
    def aside(self, tensor: torch.Tensor) -> Iterator[None]:
        """One side stream a device; torch's allocator keeps the tensor's memory until it is done."""
        device = tensor.device
        side = self._side.get(device)
        if side is None:
            side = self._side.setdefault(device, torch.cuda.Stream(device))
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            try:
                yield
            finally:
                tensor.record_stream(side)

    def used_here(self, tensor: torch.Tensor) -> None:
        """Its memory is given to nobody else before this stream has done what it is given now."""
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))

    @contextmanager
    def on_own_stream(self, ordinal: int) -> Iterator[None]:
        """Waits for this stream alone, never for the device."""
        own = self._own.get(ordinal)
        if own is None:
            own = self._own.setdefault(ordinal, torch.cuda.Stream(ordinal))
        with torch.cuda.stream(own):
            try:
                yield
            finally:
                own.synchronize()


class _CudaEvent:
    """An event of torch's, and the devices where others may wait for it."""

    __slots__ = ("_devices", "_event")

    def __init__(self, event: torch.cuda.Event, devices: Sequence[torch.device]) -> None:
        self._event = event
        self._devices = devices

    def is_done(self) -> bool:
        try:
            with cuda_driver.relaxed_capture():
                return bool(self._event.query())
        except cuda_driver.CudaError as error:
            raise RuntimeError(str(error)) from error

    def wait_on_current_stream(self) -> None:
        for device in self._devices:
            torch.cuda.current_stream(device).wait_event(self._event)


def _is_capturing() -> bool:
    """A dead context captures nothing, and what lies in the host can still be fetched there."""
    try:
        return bool(torch.cuda.is_current_stream_capturing())
    except RuntimeError:
        return False


def settle_thread(ordinal: int) -> None:
    """Let the calling thread, the library's own, work on a device for good.

    Raises:
        CudaError: the driver refuses.
        RuntimeError: torch does.
    """
    if torch.cuda.is_initialized():
        torch.cuda.set_device(ordinal)
    cuda_driver.settle_thread(ordinal)


def streams_of_torch() -> Streams | None:
    """None where torch was built without CUDA: then every copy is done on return."""
    return CudaStreams() if torch.backends.cuda.is_built() else None
