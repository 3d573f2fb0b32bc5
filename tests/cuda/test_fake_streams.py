"""The fake driver's streams, events and captures: what is late, what is in order, what spoils."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.cuda_program import Program, ProgramFailed
from tests.fakes.fake_cuda.description import GIB
from tests.fakes.fake_cuda.results import CUresult

NOT_READY = CUresult.CUDA_ERROR_NOT_READY
SPOILS = CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
SPOILT = CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
NO_HANDLE = CUresult.CUDA_ERROR_INVALID_HANDLE
LOST = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
BEGIN = "s, t = ok(d.cuStreamCreate(1)), ok(d.cuStreamCreate(1)); e = ok(d.cuEventCreate(2))"
MEMORY = "p, q = ok(d.cuMemAlloc(2 << 20)), ok(d.cuMemAlloc(2 << 20))"
MODES = "g, l, r = d.CUstreamCaptureMode(0), d.CUstreamCaptureMode(1), d.CUstreamCaptureMode(2)"
IN_A_THREAD = """
import threading
def elsewhere(function):
    seen = []
    def work():
        d.cuCtxSetCurrent(c)
        seen.append(function())
    thread = threading.Thread(target=work)
    thread.start(); thread.join()
    return seen[0]
def relaxed_query():
    before = ok(d.cuThreadExchangeStreamCaptureMode(r))
    return [int(before), int(d.cuEventQuery(e)[0])]
"""


@pytest.fixture
def late(tmp_path: Path) -> FakeCudaNode:
    return fake_cuda_node(tmp_path, gpus=1, memory=4 * GIB, stream_delay_seconds=0.3)


@pytest.fixture
def program(late: FakeCudaNode) -> Iterator[Program]:
    with Program(late.environment(), "c = use_device(0)", BEGIN, MEMORY) as started:
        yield started


@pytest.fixture
def capturing(tmp_path: Path) -> Iterator[Program]:
    node = fake_cuda_node(tmp_path, gpus=1, memory=4 * GIB)
    with Program(node.environment(), "c = use_device(0)", BEGIN, MODES, IN_A_THREAD) as started:
        started.run("ok(d.cuEventRecord(e, t))")
        yield started


def test_a_copy_in_a_stream_is_late(program: Program) -> None:
    """Until its event is done the old bytes are there; a wait makes sure."""
    program.run("ok(d.cuMemsetD8Async(p, 7, 64, s)); ok(d.cuEventRecord(e, s))")
    assert program.ask("[int(d.cuEventQuery(e)[0]), int(d.cuStreamQuery(s)[0])]") == [NOT_READY] * 2
    assert program.ask("ctypes.string_at(int(p), 2).hex()") == "0000"
    program.run("ok(d.cuEventSynchronize(e))")
    assert program.ask("[int(d.cuEventQuery(e)[0]), int(d.cuStreamQuery(s)[0])]") == [0, 0]
    assert program.ask("ctypes.string_at(int(p), 2).hex()") == "0707"


def test_streams_are_in_order_and_wait_for_events(program: Program) -> None:
    """What another stream does comes after an event that it waits for."""
    program.run(
        "ok(d.cuMemsetD8Async(p, 1, 64, s)); ok(d.cuMemsetD8Async(p, 2, 64, s))\n"
        "ok(d.cuEventRecord(e, s)); ok(d.cuStreamWaitEvent(t, e, 0))\n"
        "ok(d.cuMemcpyDtoDAsync(q, p, 64, t)); ok(d.cuStreamSynchronize(t))"
    )
    assert program.ask("ctypes.string_at(int(q), 2).hex()") == "0202"


def test_freeing_and_whole_context_waits_are_for_all_streams(program: Program) -> None:
    """Both drain the device first."""
    program.run("ok(d.cuMemsetD8Async(p, 7, 64, s)); ok(d.cuMemFree(p))")
    assert program.ask("d.cuStreamQuery(s)[0]") == 0
    program.run("ok(d.cuMemsetD8Async(q, 7, 64, 0)); ok(d.cuCtxSynchronize())")
    assert program.ask("ctypes.string_at(int(q), 2).hex()") == "0707"


def test_events_tell_the_time_between_them(program: Program) -> None:
    """Not before both are done, and only of such as keep it."""
    program.run("e, f = ok(d.cuEventCreate(0)), ok(d.cuEventCreate(0)); h = ok(d.cuEventCreate(2))")
    program.run("ok(d.cuEventRecord(e, s)); ok(d.cuEventRecord(h, s))")
    program.run("ok(d.cuMemsetD8Async(p, 1, 64, s)); ok(d.cuEventRecord(f, s))")
    assert program.ask("d.cuEventElapsedTime(e, f)[0]") == NOT_READY
    program.run("ok(d.cuEventSynchronize(f))")
    assert program.ask("ok(d.cuEventElapsedTime(e, f))") >= 250
    assert program.ask("d.cuEventElapsedTime(h, f)[0]") == NO_HANDLE


def test_unmapping_under_a_queued_copy_is_fatal_and_counted(
    late: FakeCudaNode, program: Program
) -> None:
    """As on a GPU: the context is useless afterwards, and the books tell."""
    with Program(late.environment(), "use_device(0)", MEMORY) as keeper:
        program.run(f"m = ok(open_handle({keeper.ask('handle_of(p)')!r}))")
        program.run("ok(d.cuMemsetD8Async(m, 7, 64, s)); ok(d.cuIpcCloseMemHandle(m))")
        assert program.ask("d.cuStreamSynchronize(s)[0]") == LOST
        assert program.ask("d.cuMemAlloc(8)[0]") == LOST
        assert late.touched_after_unmap == 1
        assert keeper.ask("read(p, 1)") == "00"


def test_a_batch_of_copies_is_in_the_stream_too(program: Program) -> None:
    """All of them, each with its size; never in the null stream."""
    program.run("ok(d.cuMemsetD8(p, 3, 64)); a = d.CUmemcpyAttributes()")
    program.run("behind = d.CUdeviceptr(int(q) + 8)")
    with pytest.raises(ProgramFailed, match="CUdeviceptr"):  # as cuda-bindings has it
        program.ask("d.cuMemcpyBatchAsync([int(q)], [p], [1], 1, [a], [0], 1, s)[0]")
    batch = "d.cuMemcpyBatchAsync([q, behind], [p, p], [1, 2], 2, [a], [0], 1, {})[0]"
    assert program.ask(batch.format("0")) == CUresult.CUDA_ERROR_INVALID_VALUE
    assert program.ask(batch.format("s")) == 0
    assert program.ask("ctypes.string_at(int(q), 1).hex()") == "00"
    program.run("ok(d.cuStreamSynchronize(s))")
    assert program.ask("ctypes.string_at(int(q), 11).hex()") == "03" + "00" * 7 + "030300"


def test_ended_streams_and_events_are_unknown(program: Program) -> None:
    """And ending them twice is an error."""
    program.run("ok(d.cuEventDestroy(e)); ok(d.cuStreamDestroy(s))")
    for call in ("cuEventQuery(e)", "cuEventDestroy(e)", "cuStreamQuery(s)", "cuStreamDestroy(s)"):
        assert program.ask(f"d.{call}[0]") == CUresult.CUDA_ERROR_INVALID_HANDLE


@pytest.mark.parametrize(("mode", "spoils"), [("g", True), ("l", False), ("r", False)])
def test_another_threads_query_spoils_a_global_capture(
    capturing: Program, mode: str, *, spoils: bool
) -> None:
    """One event query from a library's thread is enough, unless only threads of its own count."""
    capturing.run(f"ok(d.cuStreamBeginCapture(s, {mode}))")
    code = capturing.ask("elsewhere(lambda: int(d.cuEventQuery(e)[0]))")
    assert code == (SPOILS if spoils else 0)
    assert capturing.ask("d.cuStreamIsCapturing(s)") == [0, 2 if spoils else 1]
    assert capturing.ask("d.cuStreamEndCapture(s)[0]") == (SPOILT if spoils else 0)
    assert capturing.ask("d.cuStreamIsCapturing(s)") == [0, 0]


def test_a_relaxed_thread_spoils_nothing(capturing: Program) -> None:
    """Its mode is its own, and the exchange tells the one before."""
    capturing.run("ok(d.cuStreamBeginCapture(s, g))")
    assert capturing.ask("elsewhere(relaxed_query)") == [0, 0]
    assert capturing.ask("elsewhere(lambda: int(d.cuMemAlloc(8)[0]))") == SPOILS
    assert capturing.ask("d.cuStreamEndCapture(s)[0]") == SPOILT


def test_captured_work_is_noted_and_not_done(capturing: Program) -> None:
    """Its bytes stay; waiting for the captured stream spoils the capture."""
    capturing.run(f"{MEMORY}; ok(d.cuStreamBeginCapture(s, r)); ok(d.cuMemsetD8Async(p, 7, 8, s))")
    assert capturing.ask("ctypes.string_at(int(p), 1).hex()") == "00"
    assert capturing.ask("int(ok(d.cuStreamEndCapture(s))) > 0")
    capturing.run("ok(d.cuStreamBeginCapture(s, g))")
    assert capturing.ask("d.cuStreamSynchronize(s)[0]") == SPOILS
    assert capturing.ask("d.cuStreamEndCapture(s)[0]") == SPOILT
