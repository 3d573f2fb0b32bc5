"""A keeper whose context dies, whose driver stumbles, or whose GPU is gone, as a real process."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from aqua_daemon.keeper.cuda_gpu import CudaGpu
from aqua_daemon.keeper.gpu import SlabMemory
from aqua_daemon.keeper.refusal import Refused
from aqua_daemon.keeper.stuck import end_if_stuck
from tests.cuda.keepers import KINDS, SLAB_BYTES, kill_and_wait, running_keeper, tenant
from tests.cuda.test_free_bytes import gpu_in_process
from tests.cuda.test_health import DEAD
from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.fake_cuda.results import CUresult
from tests.keeper.holders import lease_id
from tests.nodes import wait_until

GIB = 2**30


@pytest.fixture
def node(tmp_path: Path) -> FakeCudaNode:
    return fake_cuda_node(tmp_path, gpus=2, memory=2 * GIB)


@pytest.mark.parametrize("code", DEAD, ids=lambda code: code.name)
def test_a_keeper_whose_context_dies_says_why_and_ends(node: FakeCudaNode, code: CUresult) -> None:
    """Its last report has the driver's word; what nobody could scrub goes with the process."""
    with running_keeper(node, "legacy") as keeper, keeper.daemon() as daemon, tenant(node) as user:
        slab = daemon.allocate(user, gpu=keeper.gpu, nbytes=SLAB_BYTES)
        node.kill_context(int(code), pid=keeper.pid)
        daemon.report_that(keeper.gpu, lambda report: code.name in report.not_lending)
        failed = daemon.answer(daemon.ask_to_free(slab)) if not daemon.has_ended() else None
        assert failed is None or failed.failed.code == "INTERNAL"
        assert keeper.wait_for_end() == 1
        wait_until(lambda: not node.allocations(), what="the driver takes it back")
        assert {context.pid for context in node.contexts()} == {user.pid}


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_a_dead_context_held_come_to_nobody(node: FakeCudaNode, kind: str) -> None:
    """The next keeper's slab is zero, though the last one's was never scrubbed."""
    with tenant(node) as user:
        with running_keeper(node, kind) as keeper, keeper.daemon() as daemon:
            slab = daemon.allocate(user, gpu=keeper.gpu, nbytes=SLAB_BYTES)
            user.open(slab)
            user.fill(SLAB_BYTES, 0xAB)
            user.close_slab(slab)
            node.kill_context(
                int(CUresult.CUDA_ERROR_ILLEGAL_ADDRESS), pid=keeper.pid, function="cuMemsetD8Async"
            )
            assert daemon.answer(daemon.ask_to_free(slab)).failed.code == "INTERNAL"
            assert keeper.wait_for_end() == 1
        wait_until(lambda: not node.allocations(), what="the driver takes it back")
        with running_keeper(node, kind) as keeper, keeper.daemon() as daemon:
            slab = daemon.allocate(user, gpu=keeper.gpu, nbytes=SLAB_BYTES, lease=2)
            user.open(slab)
            assert user.read(SLAB_BYTES) == slab.canary + bytes(SLAB_BYTES - 64)


def test_a_driver_that_stumbles_once_costs_nobody_a_slab(node: FakeCudaNode) -> None:
    """A look that fails and one that does not: the keeper stays, with all that it holds."""
    with running_keeper(node, "legacy") as keeper, keeper.daemon() as daemon, tenant(node) as user:
        slab = daemon.allocate(user, gpu=keeper.gpu, nbytes=SLAB_BYTES)
        node.fail("cuCtxSynchronize", int(CUresult.CUDA_ERROR_UNKNOWN), pid=keeper.pid)
        daemon.next_report(keeper.gpu)
        daemon.next_report(keeper.gpu)
        node.fail("cuCtxSynchronize", None)
        report = daemon.next_report(keeper.gpu)
        assert [held.tag.lease_id for held in report.slabs] == [slab.lease_id]
        user.open(slab)
        assert user.read(64) == slab.canary


def test_a_gpu_that_nvml_alone_calls_lost_ends_its_keeper(node: FakeCudaNode) -> None:
    """The driver answers as if nothing had been; the reason is NVML's."""
    with running_keeper(node, "legacy") as keeper, keeper.daemon() as daemon:
        node.lose_in_nvml(keeper.gpu)
        daemon.report_that(keeper.gpu, lambda report: "the GPU is lost" in report.not_lending)
        assert keeper.wait_for_end() == 1
        assert "xid" in keeper.log()


def test_a_gpu_that_comes_back_is_lent_by_the_keeper_that_waited(node: FakeCudaNode) -> None:
    """Without a context as long as it is lost, and without a word from anybody when it is not."""
    gpu = node.uuids[0]
    node.remove_gpu(gpu)
    with running_keeper(node, "legacy", gpu=gpu) as keeper, keeper.daemon() as daemon:
        daemon.report_that(gpu, lambda report: "GPU is lost" in report.not_lending)
        assert node.contexts() == []
        node.return_gpu(gpu)
        daemon.report_that(gpu, lambda report: not report.not_lending)
        with tenant(node) as user:
            daemon.allocate(user, gpu=gpu, nbytes=SLAB_BYTES)
        kill_and_wait(keeper, node)


def test_what_spoils_a_process_is_told_for_a_while_and_left_to_the_next(node: FakeCudaNode) -> None:
    """A context that dies as it is made: the keeper says so before it ends, and holds nothing."""
    node.kill_context(int(CUresult.CUDA_ERROR_ECC_UNCORRECTABLE), function="cuMemsetD8Async")
    with gpu_in_process(node) as gpu:
        gpu.look()
        assert "CUDA_ERROR_ECC_UNCORRECTABLE" in gpu.report().not_lending
        assert node.contexts() == []
        gpu.look()
        assert gpu.failure == ""
        gpu._open_again_at = 0.0
        gpu.look()
        assert gpu.failure.startswith("CUDA_ERROR_ECC_UNCORRECTABLE: ")


def made(gpu: CudaGpu, lease: int) -> SlabMemory | None:
    with contextlib.suppress(Refused):
        return gpu.make(lease_id(lease), SLAB_BYTES)
    return None


def freed(gpu: CudaGpu, memory: SlabMemory) -> bool:
    with contextlib.suppress(Refused):
        memory.scrub()
        gpu.take_back(memory)
        return True
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_whichever_call_fails_once_nothing_leaks_and_all_is_freed(
    node: FakeCudaNode, kind: str
) -> None:
    """A slab is made or refused, and one that is to be freed is, at the second try at the latest."""
    error = int(CUresult.CUDA_ERROR_UNKNOWN)
    with gpu_in_process(node, kind) as gpu:
        gpu.look()
        wait_until(lambda: not gpu.report().not_lending, what="it has been read")
        refusals, seconds, call = 0, 0, 0
        while refusals + seconds == call:  # until there is no such call any more
            call += 1
            node.fail("any", error, first_call=call, times=1)
            memory = made(gpu, call)
            refusals += memory is None
            node.fail("any", None)
            if memory is not None:
                node.fail("any", error, first_call=call - refusals, times=1)
                if not freed(gpu, memory):
                    seconds += 1
                    node.fail("any", None)
                    assert freed(gpu, memory)
                node.fail("any", None)
            assert node.allocations() == []
            assert gpu.reader.held.nbytes == 0
        assert refusals > 10
        assert seconds > 5
        assert gpu.failure == ""


def test_a_driver_that_holds_a_call_on_a_lost_gpu_does_not_hold_the_keeper(
    node: FakeCudaNode,
) -> None:
    """The process ends, so that whoever had something there is told."""
    with running_keeper(node, "legacy") as keeper, keeper.daemon() as daemon:
        daemon.report_that(keeper.gpu, lambda report: not report.not_lending)
        node.hang(pid=keeper.pid)
        node.remove_gpu(keeper.gpu)
        assert keeper.wait_for_end() == 1
        assert "has held a call for" in keeper.log()


@pytest.mark.parametrize(("is_lost", "is_silent"), [(True, False), (False, True)])
def test_a_slow_keeper_and_one_that_waits_for_its_gpu_are_left(
    *, is_lost: bool, is_silent: bool
) -> None:
    """Only both together end a process."""
    looks: list[float] = []
    ends: list[str] = []

    def looked_at() -> float:
        looks.append(time.monotonic())
        return looks[0] - 3600.0 if is_silent else looks[-1]

    is_over = end_if_stuck(
        is_lost=lambda: is_lost, looked_at=looked_at, end=lambda: ends.append("end"), seconds=0.01
    )
    wait_until(lambda: len(looks) > 5, what="it looks")
    is_over.set()
    assert ends == []
