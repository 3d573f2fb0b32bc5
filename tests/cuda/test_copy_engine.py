"""The library's streams, events and copies on a made-up driver, where every copy is late.

The daemon and its keepers are real processes; tensors are the CPU's and count as a GPU's, so that
whoever forgets to wait reads old bytes. What a device does with it is tests/gpu's.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import aqua_client
from aqua_client import calibrating
from aqua_client.cuda_driver import acting_on, call, driver
from tests.contract.tensors import noise
from tests.cuda.engines import Engine, await_idle, running_engine
from tests.fakes.fake_cuda import process
from tests.fakes.fake_cuda.results import CUresult
from tests.fakes.fake_cuda.streams import SYNCHRONIZE_DEFAULT
from tests.fakes.torch_streams import DEVICE
from tests.nodes import MIB, wait_until

DELAY_SECONDS = 0.05  # of each copy: long enough to be caught before it is done
SYNCHRONISING = {"cuCtxSynchronize", SYNCHRONIZE_DEFAULT, "cuMemFree", "cuMemcpyDtoH", "cuMemcpy"}

pytestmark = pytest.mark.limit(120)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Copies are late there."""
    with running_engine(stream_delay_seconds=DELAY_SECONDS) as made:
        yield made


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Calls of the driver meanwhile, the library's own thread's too."""
    before = Counter(process.calls)
    found: Counter[str] = Counter()
    yield found
    found.update(process.calls - before)


def test_copies_are_late_and_in_order(engine: Engine) -> None:
    """Neither call waits; a fetch comes after its offload, on whatever stream."""
    tensor, out = noise(8 * MIB, seed=1, device="cpu"), torch.zeros(8 * MIB, dtype=torch.uint8)
    with engine.stream() as stream:
        handle = engine.client.offload(tensor)
        assert handle.tier == "peer"
        with engine.stream():
            began = time.monotonic()
            handle.fetch(out=out)
            assert not bool(out.any()), "the fetch has waited"
            assert time.monotonic() - began < 10 * DELAY_SECONDS
        assert torch.equal(out, tensor)
        assert (tensor.data_ptr(), stream) in kept(engine)


def kept(engine: Engine) -> list[tuple[int, int]]:
    return [(tensor.data_ptr(), stream) for tensor, stream in engine.torch.kept]


def test_what_goes_and_what_comes_have_a_stream_each(engine: Engine) -> None:
    """Neither waits for the other; each tensor's memory is kept for its stream."""
    tensor = noise(MIB, seed=2, device="cpu")
    parked = engine.client.offload(noise(MIB, seed=3, device="cpu"))
    with engine.stream():
        going = engine.client.offload(tensor, overlap=True)
        parked.prefetch()
        (out_of, into) = [stream for _, stream in engine.torch.kept[-2:]]
        assert out_of != into
        assert kept(engine)[-2] == (tensor.data_ptr(), out_of)
        going.wait()
        fetched = parked.fetch()
    assert torch.equal(fetched, noise(MIB, seed=3, device="cpu"))
    assert torch.equal(fetched_late(engine, going), tensor)


def fetched_late(engine: Engine, handle: aqua_client.OffloadedTensor) -> torch.Tensor:
    with engine.stream():
        return handle.fetch()


def test_a_side_stream_waits_for_the_caller_s(engine: Engine) -> None:
    """What the caller has enqueued before is in the bytes that are parked."""
    tensor, elsewhere = (torch.zeros(MIB, dtype=torch.uint8) for _ in range(2))
    with engine.stream() as stream:
        with acting_on(DEVICE):
            for there in (
                elsewhere,
                elsewhere,
                elsewhere,
                tensor,
            ):  # the last is later than any one
                call("cuMemcpyAsync", there.data_ptr(), noise_at(engine), MIB, stream)
        handle = engine.client.offload(tensor, overlap=True)
    assert torch.equal(fetched_late(engine, handle), noise(MIB, seed=4, device="cpu"))


def noise_at(engine: Engine) -> int:
    tensor = noise(MIB, seed=4, device="cpu")
    engine.torch.keep(tensor, DEVICE, 0)
    return tensor.data_ptr()


def test_nothing_is_enqueued_into_a_capture_and_none_is_spoilt(engine: Engine) -> None:
    """Not by the calls it refuses, nor by the library's thread, nor by other threads' copies."""
    tensor, out = noise(MIB, seed=5, device="cpu"), torch.zeros(MIB, dtype=torch.uint8)
    handle = engine.client.offload(tensor)
    capturing = engine.torch.new_stream()
    everywhere = driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
    found: list[aqua_client.OffloadedTensor] = []

    def elsewhere() -> None:
        with engine.stream():
            found.append(engine.client.offload(tensor, overlap=True))
            handle.fetch(out=out)

    with acting_on(DEVICE):
        call("cuStreamBeginCapture", capturing, everywhere)
    with engine.torch.using(DEVICE, capturing):
        for act in (lambda: engine.client.offload(tensor), handle.fetch, handle.prefetch):
            with pytest.raises(aqua_client.InvalidRequest, match="captured"):
                act()
        thread = threading.Thread(target=elsewhere)
        thread.start()
        wait_until(lambda: bool(found), what="another thread offloads")
        await_idle(engine)
    with acting_on(DEVICE):
        assert int(call("cuStreamEndCapture", capturing)) > 0
    thread.join()
    assert torch.equal(fetched_late(engine, found[0]), tensor)


def test_no_call_synchronises_the_device(engine: Engine) -> None:
    """Offload, fetch, prefetch and release, on a stream of the server's and on the default one."""
    kept: list[torch.Tensor] = []
    tensor, out = noise(2 * MIB, seed=6, device="cpu"), torch.zeros(2 * MIB, dtype=torch.uint8)
    with counted() as calls:
        for _ in range(3):
            handle = engine.client.offload(tensor, overlap=True)
            handle.prefetch()
            kept.append(handle.fetch())
            handle.fetch(out=out)
            handle.release()
        await_idle(engine)
    assert not SYNCHRONISING & calls.keys()
    # A slab that is opened meanwhile is read on a stream of that moment's.
    assert calls["cuStreamSynchronize"] <= calls["cuStreamDestroy"], "nobody waits for a stream"


def test_a_call_is_a_handful_of_the_driver_s(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """However large the tensor; told, and no more than ten where five are meant."""
    for nbytes in (64 * 1024, 24 * MIB):
        tensor, out = noise(nbytes, seed=7, device="cpu"), torch.zeros(nbytes, dtype=torch.uint8)
        for _ in range(3):  # in the last one slab and events are there
            with engine.stream():
                with counted() as offloading:
                    handle = engine.client.offload(tensor)
                with counted() as fetching:
                    handle.fetch(out=out)
            handle.release()
            await_idle(engine)
        assert torch.equal(out, tensor)
        for name, calls in (("offload", offloading), ("fetch", fetching)):
            ours = Counter({one: count for one, count in calls.items() if one not in ASKING})
            with capsys.disabled():
                print(f"\n{name} of {nbytes >> 10} KiB: {dict(ours)}", end="")
            assert ours["cuMemcpyAsync"] == 1
            assert sum(ours.values()) <= 10


# What the library's thread does meanwhile: it asks for events, and pins memory.
ASKING = {
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuMemHostRegister",
    "cuEventQuery",
    "cuThreadExchangeStreamCaptureMode",
    "cuCtxSetCurrent",
    "cuCtxGetCurrent",
}


def test_a_driver_that_refuses_leaves_the_copies_to_torch(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The bytes are right, and the log says why it was slow."""
    tensor = noise(MIB, seed=8, device="cpu")
    engine.machine.fail("cuMemcpyAsync", 801)
    handle = engine.client.offload(tensor)
    engine.machine.fail("cuMemcpyAsync", None)
    assert torch.equal(fetched_late(engine, handle), tensor)
    assert "left to torch" in caplog.text


def test_a_copy_whose_end_cant_be_recorded_is_waited_for(engine: Engine) -> None:
    """The server sees no error and its bytes, and what was held is let go; nothing is stuck."""
    tensor, out = noise(MIB, seed=13, device="cpu"), torch.zeros(MIB, dtype=torch.uint8)
    engine.machine.fail("cuEventRecord", int(CUresult.CUDA_ERROR_OUT_OF_MEMORY))
    try:
        with engine.stream():
            handle = engine.client.offload(tensor, overlap=True)
            assert handle.tier == "peer"
            handle.fetch(out=out)
            assert torch.equal(out, tensor)
    finally:
        engine.machine.fail("cuEventRecord", None)
    assert not engine.client._pager._tiers.flights
    handle.release()


def test_events_are_used_again(engine: Engine) -> None:
    """Twenty copies make few of them: as many as are ever needed at once."""
    tensor, out = noise(4096, seed=9, device="cpu"), torch.zeros(4096, dtype=torch.uint8)

    def rounds(count: int) -> None:
        for _ in range(count):
            handle = engine.client.offload(tensor)
            handle.fetch(out=out)
            handle.release()
            await_idle(engine)

    rounds(2)
    with counted() as calls:
        rounds(10)
    assert calls["cuEventRecord"] >= 20
    assert calls["cuEventCreate"] <= 5


def test_without_a_side_stream_copies_go_on_the_current_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is when a device's memory is tight that the driver has none, and that tensors are parked."""
    streams = engine.client._pager.streams
    monkeypatch.setattr(streams, "_made", {})
    tensor = noise(MIB, seed=11, device="cpu")
    engine.machine.fail("cuStreamCreate", int(CUresult.CUDA_ERROR_OUT_OF_MEMORY))
    try:
        handle = engine.client.offload(tensor, overlap=True)
        handle.prefetch()
        out = handle.fetch()
    finally:
        engine.machine.fail("cuStreamCreate", None)
    assert handle.tier == "peer"
    await_idle(engine)
    assert torch.equal(out, tensor)
    assert any(kept.data_ptr() == tensor.data_ptr() for kept, _ in engine.torch.kept)


def test_numbers_that_cant_be_pinned_are_sent_as_they_are(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinned memory can run out: blocks are parked all the same."""

    def refuse(numbers: torch.Tensor, ordinal: int) -> torch.Tensor:
        raise RuntimeError(f"out of memory: {numbers.numel()} for {ordinal}")

    monkeypatch.setattr(calibrating, "_begun", {torch.device("cpu")})  # nobody measures meanwhile
    monkeypatch.setattr(engine.torch, "upload", refuse)
    cache, out = noise(MIB, seed=12, device="cpu").view(16, -1), torch.zeros(16, MIB // 16).byte()
    pool = engine.client.pool((MIB // 16,), torch.uint8)
    pool.load(pool.store(cache, range(16)), out, range(16))
    await_idle(engine)
    assert torch.equal(out, cache)
