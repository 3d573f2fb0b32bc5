"""Streams without a GPU: each copy's end is an event that comes when the test says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch

from aqua_client.crossover import Way
from aqua_client.errors import InvalidRequest
from aqua_client.streams import Begin, Event, Pieces


class FakeEvent:
    """Not done until `finish`; from `fail` on nobody can tell."""

    def __init__(self, *, is_done: bool = False) -> None:
        self._is_done = is_done
        self._failure = ""
        self.asked_by: list[str] = []  # threads, by name
        self.nanoseconds = self.nbytes = 0  # not timed
        self.waits = 0

    def finish(self) -> None:
        self._is_done = True

    def fail(self, message: str = "CUDA error: an illegal memory access was encountered") -> None:
        self._failure = message

    def is_done(self) -> bool:
        self.asked_by.append(threading.current_thread().name)
        if self._failure:
            raise RuntimeError(self._failure)
        return self._is_done

    def wait_on_current_stream(self) -> None:
        self.waits += 1

    def wait(self) -> None:
        raise AssertionError("no place here is pinned")


class FakeStreams:
    """CPU tensors are copied at once, and yet count as enqueued."""

    def __init__(self, *, is_quick: bool = False) -> None:
        self.is_quick = is_quick  # each event is done at once
        self.is_capturing = False
        self.events: list[FakeEvent] = []
        self.asides: list[torch.Tensor] = []
        self.are_inward: list[bool] = []  # of these
        self.handed_over: list[torch.Tensor] = []
        self.is_aside = False
        self.recorded_aside = 0
        self.lock = threading.Lock()

    @property
    def home_ordinal(self) -> None:
        return None

    def concern(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def check_not_capturing(self) -> None:
        if self.is_capturing:
            raise InvalidRequest("the current stream is being captured")

    def begin_timing(
        self, device: torch.device, lender_gpu: str, *, nbytes: int
    ) -> FakeEvent | None:
        raise AssertionError(f"no slab here is on a device: {device}, {lender_gpu}, {nbytes}")

    def record(
        self,
        device: torch.device,  # noqa: ARG002 - the port's
        ordinals: Sequence[int],  # noqa: ARG002
        *,
        since: Event | None = None,  # noqa: ARG002
    ) -> FakeEvent:
        event = FakeEvent(is_done=self.is_quick)
        with self.lock:
            self.events.append(event)
            self.recorded_aside += self.is_aside
        return event

    def copy(
        self,
        device: torch.device,
        pieces: Pieces,
        *,
        may_torch: bool = False,
        begin: Begin | None = None,
    ) -> bool:
        asked = (device, len(pieces), may_torch, begin)
        raise AssertionError(f"no slab here is on a device: {asked}")

    def copy_by(
        self, way: Way, device: torch.device, pieces: Pieces, *, begin: Begin | None = None
    ) -> None:
        raise AssertionError(f"no slab here is on a device: {way, device, len(pieces), begin}")

    def upload(self, device: torch.device, numbers: torch.Tensor) -> torch.Tensor:
        return numbers.to(device)

    def crossover(self, device: torch.device) -> None:  # noqa: ARG002 - the port's
        return None

    def told(self) -> dict[str, object]:
        return {}

    def measuring(self, device: torch.device) -> AbstractContextManager[Callable[[], None]]:
        raise AssertionError(f"nothing is measured here: {device}")

    @contextmanager
    def aside(self, tensor: torch.Tensor, *, inward: bool) -> Iterator[None]:
        self.asides.append(tensor)
        self.are_inward.append(inward)
        self.is_aside = True
        try:
            yield
        finally:
            self.is_aside = False

    def used_here(self, tensor: torch.Tensor) -> None:
        self.handed_over.append(tensor)

    def on_own_stream(self, ordinal: int) -> AbstractContextManager[None]:
        raise AssertionError(f"nothing here is on CUDA device {ordinal}")

    def finish_all(self) -> None:
        """Everything enqueued so far is over."""
        with self.lock:
            for event in self.events:
                event.finish()
