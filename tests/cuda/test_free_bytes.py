"""Free bytes as a keeper reports them: never more than the driver has, at no moment.

On the fake driver, whose contexts count as real ones do. Total less others less slabs is what a
daemon takes for free, and may lend.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aqua_protos.keeper_pb2 import GpuReport

from aqua_daemon.keeper.cuda_gpu import CudaGpu
from aqua_daemon.keeper.nvml_reader import NvmlReader
from aqua_daemon.keeper.refusal import Refused
from tests.cuda.keepers import KINDS, SLAB_BYTES, running_keeper, tenant
from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.keeper.holders import ANSWER_SECONDS
from tests.keeper.peers import Peer
from tests.nodes import MIB, wait_until

MEMORY = 1024 * MIB
CONTEXT_BYTES, FIRST_USE_BYTES = 300 * MIB, 24 * MIB


@pytest.fixture
def node(tmp_path: Path) -> FakeCudaNode:
    """Where a context grows at its first fill, as a lazily loading driver's does."""
    return fake_cuda_node(
        tmp_path,
        gpus=2,
        memory=MEMORY,
        context_bytes=CONTEXT_BYTES,
        first_use_bytes=FIRST_USE_BYTES,
    )


def free_bytes(report: GpuReport) -> int:
    """What a daemon makes of it: nothing, where nothing is known."""
    held = sum(slab.nbytes for slab in report.slabs)
    return report.total_bytes - report.other_bytes - held if report.total_bytes else 0


def check(daemon: Peer, node: FakeCudaNode, gpu: str) -> GpuReport:
    """Ask anew: it may not tell of more than was free when it was asked."""
    truly_free = MEMORY - node.used_bytes(gpu)
    report = daemon.report(gpu)
    assert free_bytes(report) <= truly_free
    return report


@contextmanager
def gpu_in_process(node: FakeCudaNode, kind: str = "legacy") -> Iterator[CudaGpu]:
    """A keeper's GPU without its process, read once and not looked at yet."""
    with node.in_process():
        reader = NvmlReader(node.uuids[0])
        gpu = CudaGpu(
            name=node.uuids[0],
            uses_vmm=kind == "vmm",
            reader=reader,
            no_mps=node.directory / "no-mps",
        )
        try:
            reader.wait_for_first(ANSWER_SECONDS)
            yield gpu
        finally:
            node.resume_nvml(node.uuids[0])
            reader.close()
            gpu.close()
            os.unsetenv("CUDA_MPS_PIPE_DIRECTORY")


@pytest.mark.parametrize("kind", KINDS)
def test_no_report_of_a_keepers_has_too_much(node: FakeCudaNode, kind: str) -> None:
    """From its first word on, through slabs made and freed, and to the daemon that comes next."""
    with running_keeper(node, kind) as keeper, tenant(node) as user:
        with keeper.daemon() as daemon:
            assert not check(daemon, node, keeper.gpu).not_lending
            for lease in (1, 2, 3):
                daemon.allocate(user, gpu=keeper.gpu, nbytes=SLAB_BYTES, lease=lease)
                check(daemon, node, keeper.gpu)
        with keeper.daemon() as successor:
            report = check(successor, node, keeper.gpu)
            assert free_bytes(report) == MEMORY - node.used_bytes(keeper.gpu)
            slab = successor.allocate(user, gpu=keeper.gpu, nbytes=SLAB_BYTES, lease=4)
            successor.free(slab)
            for _ in range(3):
                check(successor, node, keeper.gpu)


def test_a_context_made_late_is_never_free(node: FakeCudaNode) -> None:
    """On a GPU that may be lent only now, whenever one asks."""
    gpu = node.uuids[0]
    node.change_gpu(gpu, compute_mode="exclusive_process")
    with running_keeper(node, "legacy") as keeper, keeper.daemon() as daemon:
        assert check(daemon, node, gpu).not_lending
        node.change_gpu(gpu)
        wait_until(lambda: not check(daemon, node, gpu).not_lending, what="it is lent")
        assert free_bytes(daemon.report(gpu)) == MEMORY - node.used_bytes(gpu)


def test_nothing_is_lent_before_the_context_has_been_seen(node: FakeCudaNode) -> None:
    """NVML hangs just then: the driver's own figure stands in, and no slab is made."""
    with gpu_in_process(node) as gpu:
        assert gpu.report().not_lending == "its keeper has made no context yet"
        node.stall_nvml(gpu.name)
        gpu.look()
        report = gpu.report()
        assert "NVML has not been read since" in report.not_lending
        assert free_bytes(report) <= MEMORY - node.used_bytes(gpu.name)
        with pytest.raises(Refused, match="has not been read since"):
            gpu.make("1" * 32, SLAB_BYTES)
        node.resume_nvml(gpu.name)
        wait_until(lambda: not gpu.report().not_lending, what="it has been read")
        assert free_bytes(gpu.report()) == MEMORY - node.used_bytes(gpu.name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_slab_takes_no_more_than_its_size(node: FakeCudaNode, kind: str) -> None:
    """What the driver loads for a first fill is there before, and no report came between."""
    with gpu_in_process(node, kind) as gpu:
        gpu.look()
        wait_until(lambda: not gpu.report().not_lending, what="it has been read")
        node.stall_nvml(gpu.name)
        made = gpu.make("1" * 32, SLAB_BYTES)
        try:
            assert free_bytes(gpu.report()) - SLAB_BYTES == MEMORY - node.used_bytes(gpu.name)
        finally:
            made.close()
