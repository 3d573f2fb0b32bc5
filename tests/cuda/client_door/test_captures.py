"""A server captures a graph in one thread: what the library calls in another does not end that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from aqua_client import streams
from aqua_client.copying import Memory
from aqua_client.cuda_driver import CudaError, call, driver, settle_thread
from tests.cuda.client_door.looks import HOME, home
from tests.cuda.exporter import ExportedSlab
from tests.fakes.cuda_node import FakeCudaNode


class _Event:
    """What torch's is to the library, made of the driver's own."""

    def __init__(self) -> None:
        self._event = call("cuEventCreate", 2)

    def query(self) -> bool:
        call("cuEventQuery", self._event)
        return True


@contextmanager
def capturing() -> Iterator[None]:
    """A capture of this thread's in torch's mode; CudaError at the end: something spoilt it."""
    call("cuCtxSetCurrent", call("cuDevicePrimaryCtxRetain", call("cuDeviceGet", HOME)))
    stream = call("cuStreamCreate", 1)
    mode = driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
    call("cuStreamBeginCapture", stream, mode)
    yield
    call("cuStreamEndCapture", stream)


def elsewhere(act: Callable[[], object]) -> None:
    """In a thread of the library's."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(act).result(20)


def test_a_slab_is_opened_read_and_closed(node: FakeCudaNode, slab: ExportedSlab) -> None:
    """Its canary too, on a stream that is waited for."""

    def use() -> None:
        memory = Memory.of_grant(slab.grant(), home_gpu=home(node))
        memory.close()

    with capturing():
        elsewhere(use)


@pytest.mark.usefixtures("node")
def test_the_end_of_a_copy_is_asked_for() -> None:
    """The same question without the library's precaution spoils the capture."""
    call("cuCtxSetCurrent", call("cuDevicePrimaryCtxRetain", call("cuDeviceGet", HOME)))
    event = _Event()
    asked = streams._CudaEvent(event, [])  # type: ignore[arg-type]  # it asks no more of it
    with capturing():
        elsewhere(asked.is_done)
    with pytest.raises(CudaError, match="INVALIDATED"), capturing(), suppress(CudaError):
        elsewhere(event.query)


@pytest.mark.usefixtures("node")
def test_a_thread_that_has_settled_may_ask_anything() -> None:
    """As the pager's does once, for all that torch calls in it."""
    call("cuCtxSetCurrent", call("cuDevicePrimaryCtxRetain", call("cuDeviceGet", HOME)))
    event = _Event()

    def settled() -> None:
        settle_thread(HOME)
        event.query()

    with capturing():
        elsewhere(settled)
