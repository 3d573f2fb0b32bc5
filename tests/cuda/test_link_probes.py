"""Two keepers measure the link between their GPUs: no context on the lender, nothing left behind.

On the fake driver, with keepers as real processes. The figures are no evidence about CUDA.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from aqua_protos.keeper_pb2 import KeeperReply, KeeperRequest, MeasureLink, OfferProbe

from tests.cuda.keepers import KINDS, MIB, CudaKeeper, running_keeper
from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.fake_cuda.results import CUresult
from tests.keeper.peers import Peer
from tests.nodes import wait_until

GIB = 2**30
CONTEXT_BYTES = 500 * MIB
SIZES = (64 * 1024, 4 * MIB)

pytestmark = pytest.mark.parametrize("kind", KINDS)


class Pair:
    """The keepers of a source and a target, and the daemon's ends."""

    def __init__(
        self, node: FakeCudaNode, keepers: tuple[CudaKeeper, CudaKeeper], daemons: tuple[Peer, Peer]
    ) -> None:
        self.node = node
        self.source, self.target = keepers
        self.at_source, self.at_target = daemons
        self.ours, self.theirs = socket.socketpair()

    def offer(self) -> KeeperReply:
        request = KeeperRequest(offer_probe=OfferProbe(gpu=self.source.gpu, nbytes=SIZES[-1]))
        asked = self.at_source.ask(request, (self.theirs.fileno(),))
        self.theirs.close()
        return self.at_source.answer(asked)

    def ask_to_measure(self, offered: KeeperReply) -> int:
        """With the other end, which is the target's alone from then on."""
        handle = offered.probe_offered
        request = MeasureLink(
            source=self.source.gpu,
            target=self.target.gpu,
            sizes=SIZES,
            cuda_ipc_handle=handle.cuda_ipc_handle,
            descriptor_kind=handle.descriptor_kind,
        )
        descriptors = [self.ours.fileno()]
        if not handle.cuda_ipc_handle:
            descriptors.append(self.at_source.descriptors.pop())
        asked = self.at_target.ask(KeeperRequest(measure_link=request), tuple(descriptors))
        for descriptor in descriptors[1:]:
            os.close(descriptor)
        self.ours.close()
        return asked

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def node(tmp_path: Path) -> FakeCudaNode:
    return fake_cuda_node(tmp_path, gpus=2, memory=2 * GIB)


@contextlib.contextmanager
def pair(node: FakeCudaNode, kind: str) -> Iterator[Pair]:
    with (
        running_keeper(node, kind) as source,
        running_keeper(node, kind, gpu=node.uuids[1]) as target,
        source.daemon() as at_source,
        target.daemon() as at_target,
        contextlib.closing(Pair(node, (source, target), (at_source, at_target))) as both,
    ):
        yield both


def test_the_target_copies_on_its_own_gpu(node: FakeCudaNode, kind: str) -> None:
    """Each keeper has its one context; afterwards neither GPU holds anything more."""
    with pair(node, kind) as both:
        samples = both.at_target.answer(both.ask_to_measure(both.offer())).link_measured.samples
        assert tuple(one.nbytes for one in samples) == SIZES
        assert all(one.seconds > 0 for one in samples)
        assert {context.pid: context.uuid for context in node.contexts()} == {
            both.source.pid: node.uuids[0],
            both.target.pid: node.uuids[1],
        }
        wait_until(lambda: not node.allocations(), what="all of it is given back")
        assert not node.freed_while_mapped


def test_what_is_offered_counts_as_used_until_its_reader_is_gone(
    node: FakeCudaNode, kind: str
) -> None:
    """Whatever became of the daemon: the source frees it when nobody has the other end."""
    with pair(node, kind) as both:
        both.offer()
        used = CONTEXT_BYTES + SIZES[-1]
        both.at_source.report_that(both.source.gpu, lambda report: report.other_bytes == used)
        both.at_source.close()
        with both.source.daemon() as again:
            assert again.report(both.source.gpu).other_bytes == used
            both.ours.close()
            again.report_that(both.source.gpu, lambda report: report.other_bytes == CONTEXT_BYTES)
        assert not node.allocations()


def test_a_link_to_host_memory_is_measured_both_ways(node: FakeCudaNode, kind: str) -> None:
    """By one keeper, with pinned memory."""
    with running_keeper(node, kind) as keeper, keeper.daemon() as daemon:
        for source, target in ((keeper.gpu, "host"), ("host", keeper.gpu)):
            request = MeasureLink(source=source, target=target, sizes=SIZES)
            reply = daemon.answer(daemon.ask(KeeperRequest(measure_link=request)))
            assert len(reply.link_measured.samples) == len(SIZES), reply
        wait_until(lambda: not node.allocations(), what="all of it is given back")


@pytest.mark.parametrize("function", ["cuMemcpyAsync", "cuEventCreate"])
def test_a_copy_that_fails_is_told_and_leaves_nothing(
    node: FakeCudaNode, kind: str, function: str
) -> None:
    """In the driver's words; the next one is measured."""
    with pair(node, kind) as both:
        node.fail(function, CUresult.CUDA_ERROR_INVALID_VALUE)
        failed = both.at_target.answer(both.ask_to_measure(both.offer())).failed
        assert failed.code == "INTERNAL"
        assert failed.message.startswith("CUDA_ERROR_INVALID_VALUE: ")
        wait_until(lambda: not node.allocations(), what="all of it is given back")
        node.fail(function, None)
        both.ours, both.theirs = socket.socketpair()
        assert both.at_target.answer(both.ask_to_measure(both.offer())).link_measured.samples


def test_a_handle_that_does_not_open_is_refused(node: FakeCudaNode, kind: str) -> None:
    """The source has its memory back, and the target never had any."""
    functions = {"legacy": "cuIpcOpenMemHandle", "vmm": "cuMemImportFromShareableHandle"}
    with pair(node, kind) as both:
        node.fail(functions[kind], CUresult.CUDA_ERROR_PEER_ACCESS_UNSUPPORTED)
        failed = both.at_target.answer(both.ask_to_measure(both.offer())).failed
        assert failed.message.startswith("CUDA_ERROR_PEER_ACCESS_UNSUPPORTED: ")
        wait_until(lambda: not node.allocations(), what="all of it is given back")
