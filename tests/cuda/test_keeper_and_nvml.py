"""A keeper whose GPU may not be lent for a while, whose NVML stalls, or whose GPU disappears."""

from __future__ import annotations

from pathlib import Path

import pytest

from aqua_daemon.keeper.nvml_reader import NvmlReader
from tests.cuda.inventories import ANSWER_SECONDS
from tests.cuda.keepers import MIB, SLAB_BYTES, running_keeper, tenant
from tests.fakes.cuda_node import fake_cuda_node
from tests.keeper.peers import Peer
from tests.nodes import wait_until


def test_a_reading_during_a_change_is_not_believed(tmp_path: Path) -> None:
    """What others use is never what the keeper itself is making right now."""
    node = fake_cuda_node(tmp_path, gpus=1)
    with node.in_process():
        reader = NvmlReader(node.uuids[0])
        try:
            reader.wait_for_first(ANSWER_SECONDS)
            before = reader.latest
            with reader.held.changing():
                node.set_process(node.uuids[0], 4242, SLAB_BYTES)  # the slab, made
                reader.wake()
                assert reader.latest == before
                reader.held.nbytes += SLAB_BYTES
            reader.wake()
            wait_until(lambda: reader.latest is not before, what="it is read again")
            assert reader.latest is not None
            assert reader.latest.others_bytes == 0
        finally:
            reader.close()


def awaited_refusal(daemon: Peer, gpu: str, words: str) -> None:
    daemon.report_that(gpu, lambda report: words in report.not_lending)


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"compute_mode": "exclusive_process"}, "EXCLUSIVE_PROCESS"), ({"mig": True}, "MIG")],
    ids=["exclusive", "mig"],
)
def test_a_refused_gpu_gets_no_context_until_it_may_be_lent(
    tmp_path: Path, fields: dict[str, str | bool], words: str
) -> None:
    """Its owner would be kept out by one; it is lent as soon as the mode is changed."""
    node = fake_cuda_node(tmp_path, gpus=2)
    gpu = node.uuids[0]
    node.change_gpu(gpu, **fields)
    with running_keeper(node, "legacy") as keeper, keeper.daemon() as daemon, tenant(node) as user:
        awaited_refusal(daemon, gpu, words)
        failed = daemon.answer(daemon.ask_for_slab(user, gpu=gpu, nbytes=SLAB_BYTES)).failed
        assert failed.code == "FAILED_PRECONDITION"
        assert words in failed.message
        assert {context.pid for context in node.contexts()} == {user.pid}
        node.change_gpu(gpu)
        daemon.report_that(gpu, lambda report: not report.not_lending)
        wait_until(lambda: len(node.contexts()) == 2, what="the keeper makes its context")
        daemon.allocate(user, gpu=gpu, nbytes=SLAB_BYTES, lease=2)


def test_a_stalled_nvml_holds_nothing_up_and_stops_lending(tmp_path: Path) -> None:
    """Slabs are freed and reports come meanwhile; old figures are told as old."""
    node = fake_cuda_node(tmp_path, gpus=2)
    gpu = node.uuids[0]
    with running_keeper(node, "legacy") as keeper, keeper.daemon() as daemon, tenant(node) as user:
        slab = daemon.allocate(user, gpu=gpu, nbytes=SLAB_BYTES)
        daemon.report_that(gpu, lambda report: report.other_bytes == 500 * MIB)
        node.stall_nvml(gpu)
        assert daemon.free(slab).freed.scrubbed_bytes == SLAB_BYTES
        awaited_refusal(daemon, gpu, "NVML has not answered for")
        failed = daemon.answer(daemon.ask_for_slab(user, gpu=gpu, nbytes=SLAB_BYTES, lease=2))
        assert failed.failed.code == "FAILED_PRECONDITION"
        node.resume_nvml(gpu)
        daemon.report_that(gpu, lambda report: not report.not_lending)


def test_a_gpu_that_disappears_ends_its_keeper_with_the_reason(tmp_path: Path) -> None:
    """What it held is lost with it; a keeper started again stays and says why nothing is lent."""
    node = fake_cuda_node(tmp_path, gpus=2)
    gpu = node.uuids[0]
    with running_keeper(node, "legacy") as keeper, keeper.daemon() as daemon:
        daemon.report_that(gpu, lambda report: not report.not_lending)
        node.remove_gpu(gpu)
        daemon.report_that(gpu, lambda report: bool(report.not_lending))
        assert daemon.has_ended()
        assert keeper.wait_for_end() == 1
    with running_keeper(node, "legacy") as keeper, keeper.daemon() as daemon:
        awaited_refusal(daemon, gpu, "GPU is lost")
