"""The driver's events: the ends of copies, and of some of them what they took.

They are used again once nobody has them. Whatever is asked of one is asked without waiting, on its
device and in the relaxed capture mode. Does not cover where they are recorded (`cuda_streams`).
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import AbstractContextManager, nullcontext

from aqua_client import cuda_driver
from aqua_client.cuda_driver import call
from aqua_client.cuda_errors import CudaError
from aqua_client.torch_streams import TorchStreams

_WITHOUT_TIME = 2  # CU_EVENT_DISABLE_TIMING: quicker to record and to ask
_WITH_TIME = 0

logger = logging.getLogger("aqua")


class Events:
    """A device's events that nobody has: made when there is none left."""

    def __init__(self, of_torch: TorchStreams, ordinal: int, *, keep_time: bool) -> None:
        self.torch = of_torch
        self.ordinal = ordinal
        self._flags = _WITH_TIME if keep_time else _WITHOUT_TIME
        self.free: deque[int] = deque()  # filled by garbage collection: appending needs no lock

    def take(self) -> CudaEvent:
        """One that is the caller's until nobody has it; to be called while acting on the device."""
        try:
            handle = self.free.popleft()
        except IndexError:
            with cuda_driver.relaxed_capture():
                handle = int(call("cuEventCreate", self._flags))
        return CudaEvent(self, handle)


class CudaEvent:
    """An event of the driver's, and the devices where others may wait for it."""

    __slots__ = ("_home", "_is_done", "handle", "nanoseconds", "nbytes", "ordinals", "since")

    def __init__(self, home: Events, handle: int) -> None:
        self._home = home
        self._is_done = False
        self.handle = handle
        self.ordinals: tuple[int, ...] = (home.ordinal,)
        self.since: CudaEvent | None = None  # of which this one is the end; both keep the time then
        self.nanoseconds = self.nbytes = 0

    def is_done(self) -> bool:
        """Asked once more it is known; and so is what it took."""
        if not self._is_done:
            try:
                with acting(self._home.ordinal):
                    is_over = cuda_driver.is_over(self.handle)
                    if is_over and self.since is not None:
                        self.nanoseconds = _nanoseconds_between(self.since.handle, self.handle)
                    self._is_done = is_over
            except CudaError as error:
                raise RuntimeError(str(error)) from error
        return self._is_done

    def wait_on_current_stream(self) -> None:
        """On every device that the copy was to or from."""
        if self._is_done:
            return
        for ordinal in self.ordinals:
            self.wait_on(ordinal, self._home.torch.current(ordinal))

    def wait(self) -> None:
        """In the relaxed capture mode, and without the interpreter's lock."""
        try:
            with cuda_driver.acting_on(self._home.ordinal):
                call("cuEventSynchronize", self.handle)
        except CudaError as error:
            raise RuntimeError(str(error)) from error

    def wait_on(self, ordinal: int, stream: int) -> None:
        """Let that stream wait."""
        try:
            if cuda_driver.is_current(ordinal):
                cuda_driver.wait_for(self.handle, stream)
            else:
                with cuda_driver.acting_on(ordinal):
                    cuda_driver.wait_for(self.handle, stream)
        except CudaError as error:
            raise RuntimeError(str(error)) from error

    def __del__(self) -> None:
        # What waits for it waits for what it was at that time, not for what it is used for next.
        self._home.free.append(self.handle)


def acting(ordinal: int) -> AbstractContextManager[None]:
    """On that device, which mostly is the thread's own already."""
    return _HERE if cuda_driver.is_current(ordinal) else cuda_driver.acting_on(ordinal)


def _nanoseconds_between(began: int, ended: int) -> int:
    """Of two that are over; 0: the driver does not say, and nobody needs to know."""
    try:
        with cuda_driver.relaxed_capture():
            return round(float(call("cuEventElapsedTime", began, ended)) * 1e6)
    except CudaError as error:
        logger.debug("what a copy took is not known: %s", error)
        return 0


_HERE = nullcontext()
