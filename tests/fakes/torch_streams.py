"""torch's part of streams for tensors of the CPU: they count as those of device 0.

So the library's own streams, events and copies run on the made-up driver, where they are as late as
it likes. A tensor that must not be given away is kept for good.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from aqua_client import cuda_driver, own_device, pager
from aqua_client.cuda_driver import call

DEVICE = 0


def leave_torch_out(patch: pytest.MonkeyPatch) -> None:
    """A device that torch may have, or look for, in this process is none of a fake node's."""
    patch.setattr(own_device, "_torch_has_context", lambda: False)
    patch.setattr(pager, "streams_of_torch", lambda: None)


class HostTorch:
    """Each thread's current stream is the default one until it uses another."""

    def __init__(self) -> None:
        self._local = threading.local()
        self.kept: list[tuple[torch.Tensor, int]] = []  # with the stream that had it

    def ordinal(self, device: torch.device) -> int | None:
        return DEVICE if device.type == "cpu" else None

    def is_capturing(self) -> bool:
        with cuda_driver.acting_on(DEVICE):
            return int(call("cuStreamIsCapturing", self.current(DEVICE))) != 0

    def current(self, ordinal: int) -> int:
        assert ordinal == DEVICE
        return int(getattr(self._local, "stream", 0))

    @contextmanager
    def using(self, ordinal: int, stream: int) -> Iterator[None]:
        before = self.current(ordinal)
        self._local.stream = stream
        try:
            yield
        finally:
            self._local.stream = before

    def keep(self, tensor: torch.Tensor, ordinal: int, stream: int) -> None:
        assert ordinal == DEVICE
        self.kept.append((tensor, stream))

    def upload(self, numbers: torch.Tensor, ordinal: int) -> torch.Tensor:
        there = numbers.clone()
        self.keep(there, ordinal, self.current(ordinal))
        return there

    def new_stream(self) -> int:
        """One of a server's own."""
        with cuda_driver.acting_on(DEVICE):
            return int(call("cuStreamCreate", 1))
