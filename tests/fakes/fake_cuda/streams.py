"""Streams, events and graph capture.

Work is done at once, in the caller's thread, unless the node has a stream delay: then each stream
has a thread that does it in order, later, so that whoever forgets to wait reads old bytes. What is
queued is checked again when its turn comes: touching what was unmapped meanwhile makes the
process's context useless (CUDA_ERROR_ILLEGAL_ADDRESS for ever) and is counted in the books.

A capture forbids calls that could synchronise, in the threads that its mode names, and such a call
spoils it, as a query of an event from a library's thread does. A thread in the relaxed mode may.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import SupportsInt

from tests.fakes.fake_cuda import process
from tests.fakes.fake_cuda.enums import CUstreamCaptureMode, CUstreamCaptureStatus
from tests.fakes.fake_cuda.process import call, call_for_one
from tests.fakes.fake_cuda.results import CUresult, Failed
from tests.fakes.fake_cuda.structs import CUevent, CUgraph, CUstream

Work = Callable[[], None]
_DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING
_DEFAULT_STREAMS = (0, 1, 2)  # null, legacy, per thread
SYNCHRONIZE_DEFAULT = "cuStreamSynchronize of a default stream"  # among the calls
_LOST = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS


@dataclass(kw_only=True)
class _Stream:
    device: int
    delay_seconds: float
    waiting: queue.Queue[Work | None] = field(default_factory=queue.Queue)  # None: the end
    worker: threading.Thread | None = None
    capture: _Capture | None = None

    def submit(self, work: Work, *, delay_seconds: float = 0.0) -> None:
        if not self.delay_seconds:
            work()
            return
        if self.worker is None:
            self.worker = threading.Thread(target=self._work, daemon=True)
            self.worker.start()
        self.waiting.put(lambda: _later(work, delay_seconds))

    def is_idle(self) -> bool:
        return self.waiting.unfinished_tasks == 0

    def drain(self) -> None:
        self.waiting.join()

    def close(self) -> None:
        """What is queued is still done."""
        if self.worker is not None:
            self.waiting.put(None)

    def _work(self) -> None:
        while (work := self.waiting.get()) is not None:
            try:
                work()
            finally:
                self.waiting.task_done()
        self.waiting.task_done()


@dataclass(kw_only=True)
class _Capture:
    mode: int
    thread: int
    is_spoiled: bool = False


@dataclass(kw_only=True)
class _Event:
    device: int
    keeps_time: bool
    done: threading.Event = field(default_factory=threading.Event)
    recorded_at: float | None = None


_numbers = itertools.count(0x7E0000000, 0x10)
_streams: dict[int, _Stream] = {}
_defaults: dict[int, _Stream] = {}  # by ordinal
_events: dict[int, _Event] = {}


def _forget() -> None:
    for stream in [*_streams.values(), *_defaults.values()]:
        stream.close()
    for kept in (_streams, _defaults, _events):
        kept.clear()


process.at_end.append(_forget)


def enqueue(stream: object, work: Work) -> None:
    """Do it in the stream's order; a captured stream only notes it."""
    found = _stream_of(stream)
    if found.capture is not None:
        return
    if found.delay_seconds:
        found.submit(lambda: _guarded(work), delay_seconds=found.delay_seconds)
    else:
        work()


def drain(device: int) -> None:
    """Wait for all work of a device, as cuMemFree and a synchronous copy do."""
    forbid_while_capturing()
    for stream in [*_streams.values(), *_defaults.values()]:
        if stream.device == device:
            stream.drain()


def forbid_while_capturing() -> None:
    """A call that might synchronise: refused, and the capture spoilt, where a capture forbids it."""
    own = process.thread.capture_mode
    if own == CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED:
        return
    for capture in [stream.capture for stream in [*_streams.values(), *_defaults.values()]]:
        if capture is None or capture.mode == CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED:
            continue
        is_global = capture.mode == CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
        everywhere = is_global and own == CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
        if everywhere or capture.thread == threading.get_ident():
            capture.is_spoiled = True
            raise Failed(CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)


@call_for_one
def cuStreamCreate(Flags: int) -> CUstream:  # noqa: ARG001 - the driver has it
    device = process.current_device()
    number = next(_numbers)
    _streams[number] = _Stream(device=device, delay_seconds=_delay())
    return CUstream(number)


@call_for_one
def cuStreamCreateWithPriority(flags: int, priority: int) -> CUstream:  # noqa: ARG001 - the driver has it
    device = process.current_device()
    number = next(_numbers)
    _streams[number] = _Stream(device=device, delay_seconds=_delay())
    return CUstream(number)


@call
def cuStreamDestroy(hStream: SupportsInt) -> None:
    process.current_device()
    stream = _streams.pop(int(hStream), None)
    if stream is None:
        raise Failed(CUresult.CUDA_ERROR_INVALID_HANDLE)
    stream.close()


@call
def cuStreamSynchronize(hStream: SupportsInt | None) -> None:
    if int(hStream or 0) in _DEFAULT_STREAMS:
        process.calls[SYNCHRONIZE_DEFAULT] += 1
    _uncaptured(hStream).drain()
    process.raise_sticky()


@call
def cuStreamQuery(hStream: SupportsInt | None) -> None:
    if not _uncaptured(hStream).is_idle():
        raise Failed(CUresult.CUDA_ERROR_NOT_READY)
    process.raise_sticky()


@call
def cuStreamWaitEvent(hStream: SupportsInt | None, hEvent: SupportsInt, Flags: int) -> None:  # noqa: ARG001 - the driver has it
    stream, event = _stream_of(hStream), _event_of(hEvent)
    done = event.done
    if event.recorded_at is not None and stream.capture is None:
        stream.submit(lambda: _wait(done))


@call_for_one
def cuEventCreate(Flags: int) -> CUevent:
    number = next(_numbers)
    keeps_time = not Flags & _DISABLE_TIMING
    _events[number] = _Event(device=process.current_device(), keeps_time=keeps_time)
    return CUevent(number)


@call
def cuEventRecord(hEvent: SupportsInt, hStream: SupportsInt | None) -> None:
    stream, event = _stream_of(hStream), _event_of(hEvent)
    if stream.capture is not None:
        return
    done = event.done = threading.Event()
    event.recorded_at = time.monotonic()

    def reached() -> None:
        if event.done is done:
            event.recorded_at = time.monotonic()
        done.set()

    stream.submit(reached)


@call
def cuEventQuery(hEvent: SupportsInt) -> None:
    event = _event_of(hEvent)
    forbid_while_capturing()
    if event.recorded_at is not None and not event.done.is_set():
        raise Failed(CUresult.CUDA_ERROR_NOT_READY)
    process.raise_sticky()


@call
def cuEventSynchronize(hEvent: SupportsInt) -> None:
    event = _event_of(hEvent)
    forbid_while_capturing()
    if event.recorded_at is not None:
        event.done.wait()
    process.raise_sticky()


@call_for_one
def cuEventElapsedTime(hStart: SupportsInt, hEnd: SupportsInt) -> float:
    start, end = _event_of(hStart), _event_of(hEnd)
    if start.recorded_at is None or end.recorded_at is None:
        raise Failed(CUresult.CUDA_ERROR_INVALID_HANDLE)
    if not (start.keeps_time and end.keeps_time):
        raise Failed(CUresult.CUDA_ERROR_INVALID_HANDLE)
    if not (start.done.is_set() and end.done.is_set()):
        raise Failed(CUresult.CUDA_ERROR_NOT_READY)
    return (end.recorded_at - start.recorded_at) * 1000


@call
def cuEventDestroy(hEvent: SupportsInt) -> None:
    _event_of(hEvent)
    del _events[int(hEvent)]


@call_for_one
def cuThreadExchangeStreamCaptureMode(mode: CUstreamCaptureMode) -> CUstreamCaptureMode:
    process.node()
    before = CUstreamCaptureMode(process.thread.capture_mode)
    process.thread.capture_mode = int(mode)
    return before


@call
def cuStreamBeginCapture(hStream: SupportsInt, mode: CUstreamCaptureMode) -> None:
    stream = _stream_of(hStream)
    if int(hStream) not in _streams or stream.capture is not None:
        raise Failed(CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
    stream.capture = _Capture(mode=int(mode), thread=threading.get_ident())


@call_for_one
def cuStreamEndCapture(hStream: SupportsInt) -> CUgraph:
    stream = _stream_of(hStream)
    capture = stream.capture
    if capture is None:
        raise Failed(CUresult.CUDA_ERROR_ILLEGAL_STATE)
    is_relaxed = capture.mode == CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    if capture.thread != threading.get_ident() and not is_relaxed:
        raise Failed(CUresult.CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD)
    stream.capture = None
    if capture.is_spoiled:
        raise Failed(CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)
    return CUgraph(next(_numbers))


@call
def cuGraphDestroy(hGraph: SupportsInt) -> None:  # noqa: ARG001 - a graph holds nothing here
    process.node()


@call_for_one
def cuStreamIsCapturing(hStream: SupportsInt | None) -> CUstreamCaptureStatus:
    capture = _stream_of(hStream).capture
    if capture is None:
        return CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
    if capture.is_spoiled:
        return CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_INVALIDATED
    return CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE


def _uncaptured(stream: SupportsInt | None) -> _Stream:
    found = _stream_of(stream)
    if found.capture is not None:
        found.capture.is_spoiled = True
        raise Failed(CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
    forbid_while_capturing()
    return found


def _stream_of(stream: object) -> _Stream:
    device = process.current_device()
    number = int(stream) if isinstance(stream, SupportsInt) else 0
    if number in _DEFAULT_STREAMS:
        return _defaults.setdefault(device, _Stream(device=device, delay_seconds=_delay()))
    if number not in _streams:
        raise Failed(CUresult.CUDA_ERROR_INVALID_HANDLE)
    return _streams[number]


def _event_of(event: SupportsInt) -> _Event:
    process.node()
    if int(event) not in _events:
        raise Failed(CUresult.CUDA_ERROR_INVALID_HANDLE)
    return _events[int(event)]


def _delay() -> float:
    return process.node().registry.node.stream_delay_seconds


def _later(work: Work, seconds: float) -> None:
    time.sleep(seconds)
    work()


def _wait(done: threading.Event) -> None:
    done.wait()


def _guarded(work: Work) -> None:
    """Bytes that were unmapped before their turn came are an error that never leaves."""
    try:
        work()
    except Failed:
        node = process.node()
        node.faults.dead[None] = _LOST
        with node.registry.books() as books:
            books.touched_after_unmap += 1
