"""The keeper's door to the driver: devices by UUID, undo, words for errors, MPS kept away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aqua_daemon.keeper.cuda_driver import CudaDevice, CudaError
from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.fake_cuda.results import CUresult

MIB = 2**20
SLAB = 32 * MIB
CONTEXT_BYTES = 500 * MIB
NO_SUCH_GPU = "GPU-00000000-0000-0000-0000-000000000000"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeCudaNode]:
    yield fake_cuda_node(tmp_path, gpus=3, memory=1024 * MIB, mps=True)
    os.unsetenv("CUDA_MPS_PIPE_DIRECTORY")  # set behind Python's back, and inherited


@contextmanager
def device(node: FakeCudaNode, index: int = 0) -> Iterator[CudaDevice]:
    """The device, opened by this very process."""
    with (
        node.in_process(),
        CudaDevice(node.uuids[index], no_mps=node.directory / "no-mps") as opened,
    ):
        yield opened


@pytest.mark.parametrize("index", [0, 2])
def test_a_device_is_found_by_its_uuid(node: FakeCudaNode, index: int) -> None:
    """Whatever its ordinal; its context is the only one, and goes with it."""
    with device(node, index):
        assert [context.uuid for context in node.contexts()] == [node.uuids[index]]
    assert node.contexts() == []


def test_cudas_order_of_devices_does_not_matter(tmp_path: Path) -> None:
    """The fastest first, as CUDA orders them unless it is told otherwise."""
    node = fake_cuda_node(tmp_path, gpus=3, cuda_order=(2, 0, 1))
    for index in range(3):
        with device(node, index):
            assert [context.uuid for context in node.contexts()] == [node.uuids[index]]


def test_a_device_that_is_not_there_makes_no_context(node: FakeCudaNode) -> None:
    """The message says how many CUDA shows."""
    with (
        node.in_process(),
        pytest.raises(CudaError, match=r"CUDA_ERROR_NO_DEVICE: .* among the 3 devices"),
    ):
        CudaDevice(NO_SUCH_GPU, no_mps=node.directory / "no-mps")
    assert node.contexts_made == 0


def test_it_never_becomes_a_client_of_mps(node: FakeCudaNode) -> None:
    """Not even where a server waits for everybody."""
    with device(node):
        assert [context.through_mps for context in node.contexts()] == [False]
        assert list((node.directory / "no-mps").iterdir()) == []


@pytest.mark.parametrize(
    "function",
    ["cuDevicePrimaryCtxSetFlags", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuStreamCreate"],
)
def test_what_fails_on_the_way_is_undone(node: FakeCudaNode, function: str) -> None:
    """No half-opened device is left, and the error is the driver's."""
    node.fail(function, CUresult.CUDA_ERROR_INVALID_VALUE)
    with pytest.raises(CudaError, match=r"^CUDA_ERROR_INVALID_VALUE: "), device(node):
        pass
    assert node.contexts() == []


@pytest.mark.parametrize("function", ["cuMemMap", "cuMemSetAccess"])
def test_a_mapping_that_fails_leaves_no_address_behind(node: FakeCudaNode, function: str) -> None:
    """The memory can be released, and all of it is free."""
    with device(node) as opened:
        memory = opened.create(SLAB)
        node.fail(function, CUresult.CUDA_ERROR_INVALID_VALUE)
        with pytest.raises(CudaError):
            opened.map(memory, SLAB)
        node.fail(function, None)
        opened.release(memory)
        assert node.allocations() == []
        assert opened.free_bytes() == 1024 * MIB - CONTEXT_BYTES


def test_bytes_go_in_and_out_and_away(node: FakeCudaNode) -> None:
    """Written, read, zeroed to the last piece."""
    nbytes = 80 * MIB  # one whole piece of a scrub, and a part of one
    with device(node) as opened:
        address = opened.allocate(nbytes)
        opened.write(address + nbytes - 64, b"x" * 64)
        assert opened.read(address + nbytes - 64, 64) == b"x" * 64
        opened.fill_zero(address, nbytes)
        assert opened.read(address + nbytes - 64, 64) == bytes(64)
        assert opened.free_bytes() == 1024 * MIB - CONTEXT_BYTES - nbytes
        opened.free(address)
        assert opened.free_bytes() == 1024 * MIB - CONTEXT_BYTES


def test_a_scrub_is_done_in_pieces(node: FakeCudaNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """What else runs on the GPU gets its turn in between; none is longer than 64 MiB."""
    with device(node) as opened:
        from cuda.bindings import driver

        pieces: list[int] = []
        fill = driver.cuMemsetD8Async

        def noted(address: int, value: int, nbytes: int, stream: object) -> object:
            pieces.append(nbytes)
            return fill(address, value, nbytes, stream)

        monkeypatch.setattr(driver, "cuMemsetD8Async", noted)
        opened.fill_zero(opened.allocate(160 * MIB), 160 * MIB)
    assert pieces == [64 * MIB, 64 * MIB, 32 * MIB]


def test_a_handle_is_64_bytes_and_a_descriptor_is_nobody_elses(node: FakeCudaNode) -> None:
    """A program that is started meanwhile does not inherit it."""
    with device(node) as opened:
        address, memory = opened.allocate(SLAB), opened.create(SLAB)
        assert len(opened.ipc_handle(address)) == 64
        descriptor = opened.export(memory)
        try:
            assert not os.get_inheritable(descriptor)
        finally:
            os.close(descriptor)
        opened.release(memory)
        opened.free(address)


def test_too_much_is_out_of_memory_and_a_part_of_a_granule_is_refused(node: FakeCudaNode) -> None:
    """The first can pass, the second can't: they are told apart."""
    with device(node) as opened:
        for ask in (opened.allocate, opened.create):
            with pytest.raises(CudaError) as refused:
                ask(2048 * MIB)
            assert refused.value.is_out_of_memory
        with pytest.raises(CudaError, match="no multiple of") as refused:
            opened.create(SLAB + 1)
        assert not refused.value.is_out_of_memory


def test_a_broken_context_says_so_and_a_whole_one_nothing(node: FakeCudaNode) -> None:
    """Also when it is the GPU that is gone."""
    with device(node) as opened:
        assert opened.ailment() is None
        node.fail("cuCtxSynchronize", CUresult.CUDA_ERROR_ECC_UNCORRECTABLE)
        assert str(opened.ailment()).startswith("CUDA_ERROR_ECC_UNCORRECTABLE: ")
        node.fail("cuCtxSynchronize", None)
        node.remove_gpu(node.uuids[0])
        assert opened.ailment() is not None
