"""What only torch knows of streams: which is current, and what its allocator must not give away.

A port, so that all the rest is tested on a made-up driver with tensors of the CPU; and torch's own.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch

from aqua_client import cuda_driver
from aqua_client.cuda_errors import CudaUnavailable


class TorchStreams(Protocol):
    """Devices are ordinals here, and streams the driver's handles."""

    def ordinal(self, device: torch.device) -> int | None:
        """Of a device where copies are enqueued; None: there they are done on return."""

    def is_capturing(self) -> bool:
        """Whether the current stream is being captured into a graph."""

    def current(self, ordinal: int) -> int:
        """The calling thread's current stream there."""

    def using(self, ordinal: int, stream: int) -> AbstractContextManager[object]:
        """Make a stream the current one, in this thread."""

    def keep(self, tensor: torch.Tensor, ordinal: int, stream: int) -> None:
        """Give the tensor's memory to nobody else before the stream has done what it has now."""

    def upload(self, numbers: torch.Tensor, ordinal: int) -> torch.Tensor:
        """The same on a device, in its current stream's order: nobody waits for it."""


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """A side stream for a tensor's device, which torch gives to nobody else.

    Of its own it has 32, and the next capture of a graph may be on the very one.
    """
    try:
        return torch.cuda.ExternalStream(cuda_driver.new_stream(device.index), device=device.index)
    except CudaUnavailable:
        return torch.cuda.Stream(device.index)


class OfTorch:
    """torch's."""

    def __init__(self) -> None:
        self._streams: dict[tuple[int, int], torch.cuda.Stream] = {}

    def ordinal(self, device: torch.device) -> int | None:
        """CUDA's own number of it."""
        return device.index if device.type == "cuda" else None

    def is_capturing(self) -> bool:
        """Does not touch CUDA in a process that does not use it.

        A dead context captures nothing, and what lies in the host can still be fetched there.
        """
        try:
            return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        except RuntimeError:
            return False

    def current(self, ordinal: int) -> int:
        """0 is the default stream."""
        return int(torch.cuda.current_stream(ordinal).cuda_stream)

    def using(self, ordinal: int, stream: int) -> AbstractContextManager[object]:
        """What torch allocates meanwhile is that stream's."""
        return torch.cuda.stream(self._stream(ordinal, stream))

    def keep(self, tensor: torch.Tensor, ordinal: int, stream: int) -> None:
        """Nothing is done where the memory is that stream's anyway."""
        if stream == self.current(ordinal):
            tensor.record_stream(torch.cuda.current_stream(ordinal))
        else:
            tensor.record_stream(self._stream(ordinal, stream))

    def upload(self, numbers: torch.Tensor, ordinal: int) -> torch.Tensor:
        """From pinned memory, which torch uses again when the copy is over."""
        with cuda_driver.relaxed_capture():  # the first of a size is pinned by the driver
            pinned = numbers.pin_memory()
        return pinned.to(torch.device("cuda", ordinal), non_blocking=True)

    def _stream(self, ordinal: int, stream: int) -> torch.cuda.Stream:
        found = self._streams.get((ordinal, stream))
        if found is None:
            made = torch.cuda.ExternalStream(stream, device=ordinal)
            found = self._streams.setdefault((ordinal, stream), made)
        return found
