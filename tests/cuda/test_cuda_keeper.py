"""A keeper of a CUDA GPU, with both kinds of handle: made, opened by others, freed, and counted.

On the fake driver, with the keeper and its tenants as real processes.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from aqua_protos.keeper_pb2 import (
    DESCRIPTOR_KIND_CUDA_VMM,
    DESCRIPTOR_KIND_UNSPECIFIED,
    Free,
    GpuReport,
    KeeperRequest,
)

from tests.cuda.keepers import (
    KINDS,
    MIB,
    SLAB_BYTES,
    CudaKeeper,
    kill_and_wait,
    running_keeper,
    tenant,
)
from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.fake_cuda.results import CUresult
from tests.keeper.holders import lease_id
from tests.keeper.peers import Peer
from tests.nodes import wait_until

GIB = 2**30
CONTEXT_BYTES = 500 * MIB

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def node(tmp_path: Path) -> FakeCudaNode:
    return fake_cuda_node(tmp_path, gpus=3, memory=2 * GIB)


def settled(daemon: Peer, keeper: CudaKeeper, others_bytes: int = CONTEXT_BYTES) -> GpuReport:
    """The report in which NVML has seen what was done last."""
    return daemon.report_that(keeper.gpu, lambda report: report.other_bytes == others_bytes)


def test_a_slab_is_opened_by_its_holder_behind_its_canary(node: FakeCudaNode, kind: str) -> None:
    """Zero but for 64 random bytes, reached on the holder's own GPU, counted once."""
    with (
        running_keeper(node, kind) as keeper,
        keeper.daemon() as daemon,
        tenant(node) as user,
    ):
        slab = daemon.allocate(user, gpu=keeper.gpu, nbytes=SLAB_BYTES)
        assert (len(slab.canary), len(slab.cuda_ipc)) == (64, 64 if kind == "legacy" else 0)
        kinds = {"legacy": DESCRIPTOR_KIND_UNSPECIFIED, "vmm": DESCRIPTOR_KIND_CUDA_VMM}
        assert slab.descriptor_kind == kinds[kind]
        user.open(slab)
        assert user.read(4096) == slab.canary + bytes(4096 - 64)
        report = settled(daemon, keeper)
        assert [(held.tag.lease_id, held.nbytes) for held in report.slabs] == [
            (slab.lease_id, SLAB_BYTES)
        ]
        assert report.total_bytes == 2 * GIB
        assert {context.pid: context.uuid for context in node.contexts()} == {
            keeper.pid: keeper.gpu,
            user.pid: node.uuids[1],
        }


def test_a_freed_slab_is_scrubbed_and_given_back(node: FakeCudaNode, kind: str) -> None:
    """The GPU has every byte again, and none of the holder's is left for the next."""
    with (
        running_keeper(node, kind) as keeper,
        keeper.daemon() as daemon,
        tenant(node) as user,
    ):
        slab = daemon.allocate(user, gpu=keeper.gpu, nbytes=SLAB_BYTES)
        user.open(slab)
        user.fill(SLAB_BYTES, 0xAB)
        user.close_slab(slab)
        freed = daemon.free(slab).freed
        assert (freed.lease_id, freed.scrubbed_bytes) == (slab.lease_id, SLAB_BYTES)
        assert not freed.freed_while_mapped
        assert not freed.unreturned_bytes
        assert not node.allocations()
        assert node.used_bytes(keeper.gpu) == CONTEXT_BYTES
        report = settled(daemon, keeper)
        assert (list(report.slabs), report.freed_while_mapped, list(report.warnings)) == ([], 0, [])


def test_the_next_tenant_sees_nothing_of_the_last(node: FakeCudaNode, kind: str) -> None:
    """Also where the last one's memory was never scrubbed: its keeper was killed."""
    with tenant(node) as user, tenant(node) as successor:
        with running_keeper(node, kind) as keeper, keeper.daemon() as daemon:
            slab = daemon.allocate(user, gpu=keeper.gpu, nbytes=SLAB_BYTES)
            user.open(slab)
            user.fill(SLAB_BYTES, 0xAB)
            user.close_slab(slab)
            kill_and_wait(keeper, node)
        wait_until(lambda: not node.allocations(), what="the dead keeper's memory is gone")
        with running_keeper(node, kind) as keeper, keeper.daemon() as daemon:
            slab = daemon.allocate(successor, gpu=keeper.gpu, nbytes=SLAB_BYTES, lease=2)
            successor.open(slab)
            assert successor.read(SLAB_BYTES) == slab.canary + bytes(SLAB_BYTES - 64)


def test_what_is_freed_while_mapped_is_never_counted_as_free(node: FakeCudaNode, kind: str) -> None:
    """The answer says so, others are said to use it from then on, and it heals by itself."""
    with (
        running_keeper(node, kind) as keeper,
        keeper.daemon() as daemon,
        tenant(node) as user,
    ):
        slab = daemon.allocate(user, gpu=keeper.gpu, nbytes=SLAB_BYTES)
        user.open(slab)
        settled(daemon, keeper)
        freed = daemon.free(slab).freed
        assert (freed.freed_while_mapped, freed.unreturned_bytes) == (True, SLAB_BYTES)
        for report in (daemon.report(keeper.gpu), daemon.next_report(keeper.gpu)):
            assert not report.slabs
            assert report.other_bytes == CONTEXT_BYTES + SLAB_BYTES
            assert report.freed_while_mapped == 1
        assert "32 MiB were freed and are still used (unreturned)" in report.warnings[0]
        user.close_slab(slab)
        report = settled(daemon, keeper)
        assert not report.warnings
        assert not node.allocations()


def test_a_slab_that_does_not_fit_is_refused_with_the_figures(
    node: FakeCudaNode, kind: str
) -> None:
    """Nothing is left behind, and what does fit is granted after it."""
    node.set_process(node.uuids[0], 4242, 2 * GIB - CONTEXT_BYTES - 40 * MIB)
    with (
        running_keeper(node, kind) as keeper,
        keeper.daemon() as daemon,
        tenant(node) as user,
    ):
        reply = daemon.answer(daemon.ask_for_slab(user, gpu=keeper.gpu, nbytes=64 * MIB))
        assert reply.failed.code == "RESOURCE_EXHAUSTED"
        assert f"{64 * MIB} are asked for" in reply.failed.message
        assert f"of {2 * GIB} bytes" in reply.failed.message
        assert not node.allocations()
        daemon.allocate(user, gpu=keeper.gpu, nbytes=SLAB_BYTES)


def test_memory_that_is_not_clean_is_given_to_nobody(node: FakeCudaNode, kind: str) -> None:
    """A driver that says it has zeroed what it has not is found out by a sample."""
    with tenant(node) as user:
        with running_keeper(node, kind) as keeper, keeper.daemon() as daemon:
            slab = daemon.allocate(user, gpu=keeper.gpu, nbytes=SLAB_BYTES)
            user.open(slab)
            user.fill(SLAB_BYTES, 0xAB)
            user.close_slab(slab)
            kill_and_wait(keeper, node)
        wait_until(lambda: not node.allocations(), what="the dead keeper's memory is gone")
        node.fail("cuMemsetD8Async", CUresult.CUDA_SUCCESS)  # answers, and does nothing
        with running_keeper(node, kind) as keeper, keeper.daemon() as daemon:
            asked = daemon.ask_for_slab(user, gpu=keeper.gpu, nbytes=SLAB_BYTES, lease=2)
            failed = daemon.answer(asked).failed
            assert failed.code == "INTERNAL"
            assert "it is not zero at byte 0 after a scrub" in failed.message
            assert not node.allocations()


def test_memory_that_does_not_come_clean_is_not_freed(node: FakeCudaNode, kind: str) -> None:
    """It stays held while its holder lives, and goes when the scrub works again."""
    with (
        running_keeper(node, kind) as keeper,
        keeper.daemon() as daemon,
        tenant(node) as user,
    ):
        slab = daemon.allocate(user, gpu=keeper.gpu, nbytes=SLAB_BYTES)
        user.open(slab)
        user.fill(SLAB_BYTES, 0xAB)
        user.close_slab(slab)
        node.fail("cuMemsetD8Async", CUresult.CUDA_SUCCESS)  # answers, and does nothing
        waiting = daemon.ask_to_free(slab)
        reply = daemon.answer(daemon.ask_for_slab(user, gpu=keeper.gpu, nbytes=SLAB_BYTES, lease=1))
        assert reply.failed.code == "ALREADY_EXISTS"  # it is held as before
        node.fail("cuMemsetD8Async", None)
        assert daemon.answer(waiting).freed.scrubbed_bytes == SLAB_BYTES


@pytest.mark.parametrize(
    "function", ["cuMemsetD8Async", "cuStreamSynchronize", "cuMemcpyDtoH", "cuMemcpyHtoD"]
)
def test_a_slab_that_cannot_be_prepared_leaves_nothing_behind(
    node: FakeCudaNode, kind: str, function: str
) -> None:
    """Whichever call fails, in the driver's words; the next slab is made as if nothing had been."""
    with (
        running_keeper(node, kind) as keeper,
        keeper.daemon() as daemon,
        tenant(node) as user,
    ):
        node.fail(function, CUresult.CUDA_ERROR_INVALID_VALUE)
        reply = daemon.answer(daemon.ask_for_slab(user, gpu=keeper.gpu, nbytes=SLAB_BYTES))
        assert reply.failed.code == "INTERNAL"
        assert reply.failed.message.startswith("CUDA_ERROR_INVALID_VALUE: ")
        assert not node.allocations()
        node.fail(function, None)
        daemon.allocate(user, gpu=keeper.gpu, nbytes=SLAB_BYTES)
        settled(daemon, keeper)


def test_a_broken_context_is_told_and_ends_the_keeper(node: FakeCudaNode, kind: str) -> None:
    """Every answer fails in the driver's words, a report says why, and the process ends with 1."""
    with (
        running_keeper(node, kind) as keeper,
        keeper.daemon() as daemon,
        tenant(node) as user,
    ):
        slab = daemon.allocate(user, gpu=keeper.gpu, nbytes=SLAB_BYTES)
        for function in ("cuMemAlloc", "cuMemCreate", "cuMemsetD8Async"):
            node.fail(function, CUresult.CUDA_ERROR_ILLEGAL_ADDRESS)
        request = KeeperRequest(free=Free(gpu=slab.gpu, lease_id=slab.lease_id))
        for asked in (
            daemon.ask(request),
            daemon.ask_for_slab(user, gpu=keeper.gpu, nbytes=SLAB_BYTES, lease=2),
        ):
            failed = daemon.answer(asked).failed
            assert failed.code == "INTERNAL"
            assert "CUDA_ERROR_ILLEGAL_ADDRESS" in failed.message
        node.fail("cuCtxSynchronize", CUresult.CUDA_ERROR_ILLEGAL_ADDRESS)  # now it may look
        daemon.report_that(
            keeper.gpu, lambda report: "CUDA_ERROR_ILLEGAL_ADDRESS" in report.not_lending
        )
        assert daemon.has_ended()
        assert keeper.wait_for_end() == 1
        assert "no slab can be made here any more" in keeper.log()


def test_a_new_daemon_adopts_tags_and_proofs(node: FakeCudaNode, kind: str) -> None:
    """Of every slab, with what the holder wrote still there."""
    with running_keeper(node, kind) as keeper, tenant(node) as user:
        with keeper.daemon() as daemon:
            slab = daemon.allocate(user, gpu=keeper.gpu, nbytes=SLAB_BYTES)
            user.open(slab)
            user.fill(4096, 0xCD)
        with keeper.peer() as daemon:
            attached = daemon.attach()
            (held,) = attached.gpus[0].slabs
            assert (held.tag.lease_id, held.tag.session_id) == (lease_id(1), user.session_id)
            assert (held.tag.safety_class, held.nbytes) == ("store", SLAB_BYTES)
            assert set(daemon.proofs) == {user.session_id}
            assert attached.keeper_pid == keeper.pid
            assert (attached.smallest_slab_bytes, attached.largest_slab_bytes) == (
                32 * MIB,
                256 * MIB,
            )
            assert user.read(4096) == b"\xcd" * 4096
            user.close_slab(slab)
            assert daemon.free(slab).freed.scrubbed_bytes == SLAB_BYTES


def test_a_told_keeper_stays_for_living_holders(node: FakeCudaNode, kind: str) -> None:
    """SIGTERM ends it only when the holder has; then the GPU has everything back."""
    with running_keeper(node, kind) as keeper, tenant(node) as user:
        with keeper.daemon() as daemon:
            daemon.allocate(user, gpu=keeper.gpu, nbytes=SLAB_BYTES)
            keeper.signal(signal.SIGTERM)
            wait_until(lambda: "staying until they end" in keeper.log(), what="it was told")
            reply = daemon.answer(
                daemon.ask_for_slab(user, gpu=keeper.gpu, nbytes=SLAB_BYTES, lease=2)
            )
            assert reply.failed.code == "UNAVAILABLE"
            user.kill()
            assert keeper.wait_for_end() == 0
        wait_until(lambda: node.used_bytes(keeper.gpu) == 0, what="all is given back")


def test_owners_need_not_say_what_they_use(node: FakeCudaNode, kind: str) -> None:
    """NVML tells, this keeper's own context excepted; to register is refused with that word."""
    node.set_process(node.uuids[0], 4242, 64 * MIB)
    with running_keeper(node, kind) as keeper, keeper.daemon() as daemon:
        assert daemon.register(keeper.gpu, 4 * MIB).failed.code == "FAILED_PRECONDITION"
        report = settled(daemon, keeper, CONTEXT_BYTES + 64 * MIB)
        assert {owner.pid: owner.nbytes for owner in report.owners} == {4242: 64 * MIB}


def test_two_keepers_of_one_socket_make_one_context(node: FakeCudaNode, kind: str) -> None:
    """The second one is turned away before it touches the GPU."""
    with running_keeper(node, kind) as keeper, keeper.daemon():
        made = node.contexts_made
        second = CudaKeeper(keeper.socket.parent, node, kind)
        assert second.wait_for_end() == 1
        assert node.contexts_made == made == 1
