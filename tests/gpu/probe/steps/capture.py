"""A stream is being captured; another thread touches CUDA. Does the capture survive?

Asked for a thread as it starts, and for one that has set the relaxed capture mode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from tests.gpu.probe.driver import DriverError, call, enum, new_stream, use_device
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.launching import torch_has_cuda
from tests.gpu.probe.plan import Plan
from tests.gpu.probe.stage import Devices

BUFFER_BYTES = 2 * 2**20
MODES = ("GLOBAL", "THREAD_LOCAL", "RELAXED")  # the first is torch's default
DEFAULT, RELAXED = "as it starts", "relaxed"


def answer(_plan: Plan, where: Devices, findings: Findings) -> None:
    use_device(where.borrower)
    found: dict[str, dict[str, dict[str, str]]] = {}
    for mode in MODES:
        for name in _operations():
            both = {thread: _case(mode, thread, name, where) for thread in (DEFAULT, RELAXED)}
            found.setdefault(mode, {})[name] = both
    findings.figures("capture by mode, operation and thread", found)
    for name, both in found["GLOBAL"].items():
        words = "; ".join(f"{thread}: {said}" for thread, said in both.items())
        findings.row(f"{name} in another thread", words)
    findings.row("torch's graph, an event query beside it", _by_torch(where))


def _operations() -> dict[str, Callable[[], None]]:
    """What the library's thread may want to do."""
    event = call("cuEventCreate", 0)
    stream = new_stream()
    call("cuEventRecord", event, stream)
    call("cuStreamSynchronize", stream)
    buffer = np.ones(BUFFER_BYTES, dtype=np.uint8)

    def allocate() -> None:
        call("cuMemFree", call("cuMemAlloc", BUFFER_BYTES))

    def pin() -> None:
        call("cuMemHostRegister", buffer.ctypes.data, BUFFER_BYTES, 0)
        call("cuMemHostUnregister", buffer.ctypes.data)

    def copy() -> None:
        pointer = call("cuMemHostAlloc", BUFFER_BYTES, 0)
        call("cuMemcpyAsync", int(pointer), int(pointer), 64, stream)
        call("cuStreamSynchronize", stream)
        call("cuMemFreeHost", pointer)

    return {
        "event query": lambda: call("cuEventQuery", event),
        "event synchronize": lambda: call("cuEventSynchronize", event),
        "stream query": lambda: call("cuStreamQuery", stream),
        "allocate and free": allocate,
        "pin and unpin": pin,
        "pinned buffer and a copy": copy,
    }


def _case(mode: str, thread: str, name: str, where: Devices) -> str:
    operation = _operations()[name]
    stream, buffer = new_stream(), call("cuMemAlloc", BUFFER_BYTES)
    wanted = enum("CUstreamCaptureMode", f"CU_STREAM_CAPTURE_MODE_{mode}")
    try:
        call("cuStreamBeginCapture", stream, wanted)
    except DriverError as error:
        return str(error)
    said = _in_another_thread(operation, relaxed=thread == RELAXED, ordinal=where.borrower)
    ended = _result(lambda: _finish(stream, buffer))
    for clean in (
        lambda: call("cuStreamEndCapture", stream),  # a broken one is still open
        lambda: call("cuStreamDestroy", stream),
        lambda: call("cuMemFree", buffer),
    ):
        _result(clean)
    kept = "survives" if ended == "works" else f"is broken ({ended})"
    return f"capture {kept}, call {said}"


def _finish(stream: object, buffer: object) -> None:
    call("cuMemsetD8Async", buffer, 1, BUFFER_BYTES, stream)
    call("cuGraphDestroy", call("cuStreamEndCapture", stream))


def _result(work: Callable[[], object]) -> str:
    try:
        work()
    except (DriverError, RuntimeError) as error:  # torch raises the latter
        return str(error).splitlines()[0][:80]
    return "works"


def _in_another_thread(work: Callable[[], object], *, relaxed: bool, ordinal: int) -> str:
    said: list[str] = []

    def prepared() -> None:
        use_device(ordinal)
        if relaxed:
            mode = enum("CUstreamCaptureMode", "CU_STREAM_CAPTURE_MODE_RELAXED")
            call("cuThreadExchangeStreamCaptureMode", mode)
        work()

    thread = threading.Thread(target=lambda: said.append(_result(prepared)), daemon=True)
    thread.start()
    thread.join(10.0)
    return said[0] if said else "does not return"


def _by_torch(where: Devices) -> str:
    if not torch_has_cuda():
        return "not run: torch sees no CUDA device"
    import torch

    said = []
    for relaxed in (False, True):
        torch.cuda.set_device(where.borrower)
        tensor = torch.zeros(1024, device="cuda")
        event = torch.cuda.Event()
        event.record()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                tensor.add_(1)
                _in_another_thread(event.query, relaxed=relaxed, ordinal=where.borrower)
                tensor.add_(1)
            graph.replay()
            torch.cuda.synchronize()
            said.append("survives" if float(tensor[0]) == 2.0 else "WRONG RESULT")
        except RuntimeError as error:
            said.append(str(error).splitlines()[0][:60])
    return f"{DEFAULT}: {said[0]}; {RELAXED}: {said[1]}"
