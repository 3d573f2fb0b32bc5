"""Streams and events on CUDA, by the driver; of torch only what it alone knows.

The library's streams are the driver's own, never of torch's pool: that hands out the same 32 in
turn, so one of ours could be the very stream that a server captures a graph on. Events are used
again once nobody has them (`cuda_events`). Everything is asked in the primary context of the device
that it is about, which is torch's too. Does not cover how pieces are copied (`copy_engine`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from aqua_client import copy_engine, cuda_driver
from aqua_client.crossover import FEW, Crossover, Way
from aqua_client.cuda_driver import call
from aqua_client.cuda_errors import CudaError
from aqua_client.cuda_events import CudaEvent, Events, acting
from aqua_client.errors import InvalidRequest
from aqua_client.streams import Begin, Event, Pieces, Streams, sum_of_bytes
from aqua_client.torch_streams import OfTorch, TorchStreams

# Of each lender, after a fetch that was timed: the daemon hears of them every few seconds, and an order
# is made of many such words.
UNTIMED_SECONDS = 0.1

logger = logging.getLogger("aqua")


class CudaStreams:
    """One a client."""

    def __init__(self, of_torch: TorchStreams | None = None) -> None:
        """Touches no device."""
        self._torch = OfTorch() if of_torch is None else of_torch
        self._lock = threading.Lock()
        self._made: dict[tuple[int, str], int] = {}  # streams by device and use
        # By device, and whether they keep the time.
        self._events: dict[tuple[int, bool], Events] = {}
        self._timed_again_at: dict[str, float] = {}  # by lender
        self.home_ordinal: int | None = None
        self._said: set[str] = set()  # what was refused, and has been logged

    def concern(self, device: torch.device) -> bool:
        """CUDA's."""
        ordinal = self._torch.ordinal(device)
        if ordinal is None:
            return False
        self.home_ordinal = ordinal
        return True

    def check_not_capturing(self) -> None:
        """Does not touch CUDA in a process that does not use it."""
        if self._torch.is_capturing():
            raise InvalidRequest(
                "the current stream is being captured into a CUDA graph, and a lease's address "
                "must not outlive the lease in one: offload and fetch before or after the capture"
            )

    def begin_timing(
        self, device: torch.device, lender_gpu: str, *, nbytes: int
    ) -> CudaEvent | None:
        """Of each lender's one in a while; the others cost nothing but a look at the clock."""
        ordinal, now = self._torch.ordinal(device), time.monotonic()
        if ordinal is None or now < self._timed_again_at.get(lender_gpu, 0.0):
            return None
        self._timed_again_at[lender_gpu] = now + UNTIMED_SECONDS
        try:
            event = self._recorded(ordinal, self._torch.current(ordinal), keeps_time=True)
        except RuntimeError:
            return None
        event.nbytes = nbytes
        return event

    def record(
        self, device: torch.device, ordinals: Sequence[int], *, since: Event | None = None
    ) -> Event | None:
        """On the tensor's device: torch makes its stream wait for copies from and to others.

        Where the driver has no event for it, the caller waits for that stream.
        """
        ordinal = self._torch.ordinal(device)
        if not ordinals or ordinal is None:  # from and to the host torch has waited
            return None
        stream = self._torch.current(ordinal)
        try:
            event = self._recorded(ordinal, stream, keeps_time=since is not None)
        except RuntimeError as error:
            _wait_for(ordinal, stream)
            logger.warning("a copy was waited for: %s", error)
            return None
        if isinstance(since, CudaEvent):
            event.since, event.nbytes = since, since.nbytes
        if ordinals.count(ordinal) != len(ordinals):
            event.ordinals = tuple({ordinal, *ordinals})
        return event

    def copy(
        self,
        device: torch.device,
        pieces: Pieces,
        *,
        may_torch: bool = False,
        begin: Begin | None = None,
    ) -> bool:
        """From address to address, without a tensor made for each; where that fails torch tries."""
        ordinal = self._torch.ordinal(device)
        if ordinal is None:
            return False
        try:
            # The shortest way: one tensor's.
            if len(pieces) < FEW and isinstance(pieces, list) and cuda_driver.is_current(ordinal):
                if begin is not None:
                    begin()
                copy_engine.one_by_one(pieces, self._torch.current(ordinal))
                return True
            mean_bytes = sum_of_bytes(pieces) // len(pieces)
            way = _crossovers[ordinal].choose(mean_bytes, len(pieces), may_torch=may_torch)
            if way is Way.TORCH:
                return False
            is_theirs = copy_engine.says_a_rate(way, mean_bytes)
            self.copy_by(way, device, pieces, begin=begin if is_theirs else None)
        except (CudaError, RuntimeError) as error:
            if str(error) not in self._said:
                self._said.add(str(error))
                logger.warning("copies are left to torch: %s", error)
            return False
        return True

    def copy_by(
        self, way: Way, device: torch.device, pieces: Pieces, *, begin: Begin | None = None
    ) -> None:
        """A batch for a default stream goes beside it: the driver takes none there."""
        ordinal = self._torch.ordinal(device)
        if ordinal is None:
            raise RuntimeError(f"{device} is no CUDA device")
        current = stream = self._torch.current(ordinal)
        if way is Way.BATCH and copy_engine.is_default(current):
            stream = self._stream(ordinal, "batch")
            self._recorded(ordinal, current).wait_on(ordinal, stream)
        try:
            with acting(ordinal):
                copy_engine.enqueue(
                    way,
                    pieces,
                    ordinal=ordinal,
                    stream=stream,
                    upload=lambda records: self.upload(
                        device, torch.from_numpy(records.view(np.int64))
                    ),
                    begin=begin,
                )
        except CudaError as error:
            raise RuntimeError(str(error)) from error
        finally:  # some may be enqueued: who does it again, and what lets go of it, comes after them
            if stream != current:
                self._come_after(ordinal, stream, current)

    def upload(self, device: torch.device, numbers: torch.Tensor) -> torch.Tensor:
        """To a device that is none of CUDA's as torch does it, and where nothing can be pinned."""
        ordinal = self._torch.ordinal(device)
        if ordinal is not None:
            try:
                return self._torch.upload(numbers, ordinal)
            except (CudaError, RuntimeError) as error:
                logger.debug("numbers are waited for on their way to %s: %s", device, error)
        return numbers.to(device)

    def crossover(self, device: torch.device) -> Crossover | None:
        """All clients of the process share what was measured."""
        ordinal = self._torch.ordinal(device)
        return None if ordinal is None else _crossovers[ordinal]

    def told(self) -> dict[str, object]:
        """Of devices where something is measured."""
        found = tuple(_crossovers.items())
        return {f"cuda:{ordinal}": one.told() for ordinal, one in found if one.measured}

    @contextmanager
    def measuring(self, device: torch.device) -> Iterator[Callable[[], None]]:
        """In the relaxed capture mode all the time: what is measured and compared is waited for."""
        ordinal = self._torch.ordinal(device) or 0
        stream = self._stream(ordinal, "measuring")
        with cuda_driver.acting_on(ordinal), self._torch.using(ordinal, stream):
            try:
                yield lambda: call("cuStreamSynchronize", stream)
            finally:
                call("cuStreamSynchronize", stream)

    @contextmanager
    def aside(self, tensor: torch.Tensor, *, inward: bool) -> Iterator[None]:
        """One side stream a direction; torch keeps the tensor's memory until it is done."""
        ordinal = self._torch.ordinal(tensor.device)
        side = None if ordinal is None else self._beside(ordinal, "in" if inward else "out")
        if ordinal is None or side is None:
            try:
                yield
            finally:
                self.used_here(tensor)
            return
        with self._torch.using(ordinal, side):
            try:
                yield
            finally:
                self._torch.keep(tensor, ordinal, side)

    def used_here(self, tensor: torch.Tensor) -> None:
        """Its memory is given to nobody else before this stream has done what it is given now."""
        ordinal = self._torch.ordinal(tensor.device)
        if ordinal is not None:
            self._torch.keep(tensor, ordinal, self._torch.current(ordinal))

    @contextmanager
    def on_own_stream(self, ordinal: int) -> Iterator[None]:
        """Waits for this stream alone, never for the device."""
        own = self._stream(ordinal, "own")
        with self._torch.using(ordinal, own):
            try:
                yield
            finally:
                with cuda_driver.acting_on(ordinal):
                    call("cuStreamSynchronize", own)

    def _beside(self, ordinal: int, use: str) -> int | None:
        """A stream that waits for the current one; None: it can't be had, be it for want of memory."""
        try:
            side = self._stream(ordinal, use)
            self._recorded(ordinal, self._torch.current(ordinal)).wait_on(ordinal, side)
        except (CudaError, RuntimeError) as error:
            logger.info("copies go on the current stream: %s", error)
            return None
        return side

    def _stream(self, ordinal: int, use: str) -> int:
        with self._lock:
            stream = self._made.get((ordinal, use))
            if stream is None:
                stream = self._made[ordinal, use] = cuda_driver.new_stream(ordinal)
            return stream

    def _come_after(self, ordinal: int, stream: int, current: int) -> None:
        """What *current* is given from now on comes after what *stream* has."""
        try:
            self._recorded(ordinal, stream).wait_on(ordinal, current)
        except RuntimeError:
            _wait_for(ordinal, stream)

    def _recorded(self, ordinal: int, stream: int, *, keeps_time: bool = False) -> CudaEvent:
        events = self._events.get((ordinal, keeps_time))
        if events is None:
            made = Events(self._torch, ordinal, keep_time=keeps_time)
            events = self._events.setdefault((ordinal, keeps_time), made)
        try:
            if cuda_driver.is_current(ordinal) and events.free:
                event = events.take()
                cuda_driver.record(event.handle, stream)
            else:
                with cuda_driver.acting_on(ordinal):
                    event = events.take()
                    cuda_driver.record(event.handle, stream)
        except CudaError as error:
            raise RuntimeError(str(error)) from error
        return event


def _wait_for(ordinal: int, stream: int) -> None:
    """Raise RuntimeError where the device has failed."""
    try:
        with cuda_driver.acting_on(ordinal):
            call("cuStreamSynchronize", stream)
    except CudaError as error:
        raise RuntimeError(str(error)) from error


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


_crossovers: defaultdict[int, Crossover] = defaultdict(Crossover)  # by device

os.register_at_fork(after_in_child=_crossovers.clear)
