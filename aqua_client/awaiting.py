"""Runs copies in a few threads of the library's own, so that an event loop goes on meanwhile.

What the caller's thread has set, and a copy depends on, holds there too: inference mode, and the
current CUDA stream. Cancelling has no half-way: a copy that has not begun never does, one under
way ends first; then nothing is left of it, and nothing runs any more that touches the tensors.
Does not cover what is copied (`tensors`, `client`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from queue import SimpleQueue
from typing import TypeVar

import torch

from aqua_client import cuda_driver
from aqua_client.cuda_errors import CudaError

# Two saturate a link or the memory's bandwidth; the others are for calls that wait for the daemon.
THREADS = 4
THREAD_NAME = "aqua-copy"
BACKGROUND_THREADS = 2
BACKGROUND_NAME = "aqua-background"

T = TypeVar("T")

logger = logging.getLogger("aqua")


async def in_thread(
    call: Callable[[], T],
    *,
    device: torch.device,
    undo: Callable[[T], object] = lambda _: None,
) -> T:
    """What *call* returns, which copies a tensor of *device*; cancelled too late, it is undone."""
    stream = _streams_here(device)
    is_inference = torch.is_inference_mode_enabled()

    def run() -> T:
        with torch.inference_mode(mode=is_inference), stream:
            return call()

    future = _threads.executor().submit(run)
    result = asyncio.wrap_future(future)
    try:
        return await asyncio.shield(result)
    except asyncio.CancelledError:
        if not future.cancel():
            await _over(result)
            if not result.exception():
                undo(result.result())
        raise


def in_background(call: Callable[[], None], *, device: torch.device) -> None:
    """Let a thread of the library's own make *call*, which never raises, when one is free.

    Not one of those that are awaited: the interpreter would wait for it at its end.

    Raises:
        RuntimeError: the process may have no more threads.
    """
    stream = _streams_here(device)

    def run() -> None:
        with stream:
            call()

    _background.put(run)


def await_background(seconds: float) -> None:
    """Return when no call of `in_background` is left, or the time is over.

    For the end of the interpreter: a thread that is in torch then aborts the process.
    """
    _background.await_idle(seconds)


async def _over(result: asyncio.Future[T]) -> None:
    """Until it is, however often the caller is cancelled meanwhile: each call has a deadline."""
    while not result.done():
        try:
            await asyncio.wait([result])
        except asyncio.CancelledError:
            continue


def _streams_here(device: torch.device) -> AbstractContextManager[object]:
    """For another thread: the stream that is the caller's current one there."""
    if device.type != "cuda":
        return nullcontext()
    return _on_stream(torch.cuda.current_stream(device), device.index)


@contextmanager
def _on_stream(stream: torch.cuda.Stream, ordinal: int) -> Iterator[None]:
    """In the relaxed capture mode: torch waits there for copies of the host's memory."""
    with ExitStack() as stack:
        try:
            stack.enter_context(cuda_driver.acting_on(ordinal))
        except CudaError as error:  # without bindings, or on a dead context: torch will say more
            logger.debug("a thread of the library's is not relaxed: %s", error)
        stack.enter_context(torch.cuda.stream(stream))
        yield


class _Threads:
    """Made at the first use, and anew in a forked child, where there are none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None

    def executor(self) -> ThreadPoolExecutor:
        """The process's own."""
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix=THREAD_NAME)
            return self._executor

    def forget(self) -> None:
        """In a forked child: whoever ran, or held the lock, is not here."""
        self._lock = threading.Lock()
        self._executor = None


class _Background:
    """Daemon threads that make calls in their turn; none in a forked child before it asks."""

    def __init__(self) -> None:
        self.forget()

    def put(self, call: Callable[[], None]) -> None:
        """The next one."""
        with self._lock:
            if self._started < BACKGROUND_THREADS:
                thread = threading.Thread(target=self._serve, name=BACKGROUND_NAME, daemon=True)
                thread.start()
                self._started += 1
            self._left += 1
        self._calls.put(call)

    def await_idle(self, seconds: float) -> None:
        """Until all calls are over."""
        with self._lock:
            self._ended.wait_for(lambda: not self._left, seconds)

    def forget(self) -> None:
        """In a forked child: whoever ran, or held the lock, is not here."""
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._started = 0
        self._left = 0

    def _serve(self) -> None:
        while True:
            call = self._calls.get()
            try:
                call()
            finally:
                del call  # what it copies is nobody's any more
                with self._lock:
                    self._left -= 1
                    self._ended.notify_all()


_threads = _Threads()
_background = _Background()
os.register_at_fork(after_in_child=_threads.forget)
os.register_at_fork(after_in_child=_background.forget)
