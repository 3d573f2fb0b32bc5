"""A server captures a graph in one thread: what the library calls in another does not end that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest
import torch

from aqua_client.copying import Memory
from aqua_client.cuda_driver import call, driver, settle_thread
from aqua_client.cuda_errors import CudaError
from aqua_client.cuda_events import CudaEvent
from aqua_client.cuda_streams import CudaStreams
from tests.cuda.client_door.looks import home
from tests.cuda.exporter import ExportedSlab
from tests.fakes.cuda_node import FakeCudaNode
from tests.fakes.torch_streams import DEVICE, HostTorch

CPU = torch.device("cpu")  # whose tensors count as those of the device


def use_device() -> None:
    """As torch does in each thread of a server's."""
    call("cuCtxSetCurrent", call("cuDevicePrimaryCtxRetain", call("cuDeviceGet", DEVICE)))


@contextmanager
def capturing() -> Iterator[None]:
    """A capture of this thread's in torch's mode; CudaError at the end: something spoilt it."""
    use_device()
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
@pytest.mark.parametrize("has_device", [False, True], ids=["a new thread", "one of the server's"])
def test_the_end_of_a_copy_is_asked_for(*, has_device: bool) -> None:
    """The same question without the library's precaution spoils the capture."""
    event = CudaStreams(HostTorch()).record(CPU, [DEVICE])
    assert isinstance(event, CudaEvent)

    def ask() -> None:
        if has_device:
            use_device()
        assert event.is_done()

    with capturing():
        elsewhere(ask)
    with pytest.raises(CudaError, match="INVALIDATED"), capturing(), suppress(CudaError):
        elsewhere(lambda: call("cuEventQuery", event.handle))


@pytest.mark.usefixtures("node")
def test_a_thread_that_has_settled_may_ask_anything() -> None:
    """As the pager's does once, for all that torch calls in it."""
    use_device()
    event = call("cuEventCreate", 2)

    def settled() -> None:
        settle_thread(DEVICE)
        call("cuEventQuery", event)

    with capturing():
        elsewhere(settled)
