"""Keepers without processes: slabs are memfds of this process, answers come at once or when told."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable

from aqua_daemon.core.events import (
    Event,
    GpuReported,
    KeeperAttached,
    LinkProbed,
    SlabAllocated,
    SlabAllocationFailed,
    SlabFreed,
)
from aqua_daemon.core.instructions import AllocateSlab, FreeSlab, ProbeLink
from aqua_daemon.core.link_figures import LinkOutcome, LinkSample
from aqua_daemon.core.model import GpuReport, GpuUuid, LeaseId, SlabTag
from aqua_daemon.ports import SlabHandle

KEEPER_PID = 99
CANARY = bytes(range(64))


class FakeKeepers:
    """Implements ports.Keepers. Set `is_stuck` to leave orders unanswered, `answer` answers them."""

    def __init__(
        self, submit: Callable[[Event], None], *, gpus: Iterable[GpuUuid], gpu_bytes: int
    ) -> None:
        self.is_stuck = False
        self.is_full = False
        self.makes_cuda = False
        self.orders: list[AllocateSlab | FreeSlab] = []
        self.probes: list[ProbeLink] = []
        self.bytes_per_second = 10e9  # of every link
        self.dropped: list[LeaseId] = []
        self.slabs: dict[LeaseId, SlabTag] = {}
        self.owner_bytes: dict[GpuUuid, dict[int, int]] = {gpu: {} for gpu in gpus}
        self._gpu_bytes = gpu_bytes
        self._handles: dict[LeaseId, SlabHandle] = {}
        self._unanswered: list[AllocateSlab | FreeSlab] = []
        self._submit = submit

    def attach(self) -> None:
        """Tell the broker everything, as a link does when it comes up."""
        reports = tuple(self._report(gpu) for gpu in self.owner_bytes)
        self._submit(KeeperAttached(reports=reports, slabs=tuple(self.slabs.values())))

    def own(self, gpu: GpuUuid, *, pid: int, nbytes: int) -> None:
        """A process of the GPU uses this much of it now."""
        self.owner_bytes[gpu][pid] = nbytes
        self._submit(GpuReported(report=self._report(gpu)))

    def allocate(self, order: AllocateSlab) -> None:
        self.orders.append(order)
        self._unanswered.append(order)
        if not self.is_stuck:
            self.answer()

    def free(self, order: FreeSlab) -> None:
        self.orders.append(order)
        self._unanswered.append(order)
        if not self.is_stuck:
            self.answer()

    def probe(self, order: ProbeLink) -> None:
        self.probes.append(order)
        if not self.is_stuck:
            samples = tuple(
                LinkSample(nbytes=nbytes, seconds=1e-5 + nbytes / self.bytes_per_second)
                for nbytes in order.sizes
            )
            outcome = LinkOutcome(pair=order.pair, samples=samples)
            self._submit(LinkProbed(request_id=order.request_id, outcome=outcome))

    def answer(self) -> None:
        """Do what was ordered and say so."""
        orders, self._unanswered = self._unanswered, []
        for order in orders:
            if isinstance(order, FreeSlab):
                self.drop_handle(order.lease_id)
                self.slabs.pop(order.lease_id, None)
                self._submit(SlabFreed(lease_id=order.lease_id))
            elif self.is_full:
                lease_id = order.tag.lease_id
                self._submit(SlabAllocationFailed(lease_id=lease_id, message="out of memory"))
            else:
                self._make(order.tag)

    def handle(self, lease_id: LeaseId) -> SlabHandle | None:
        return self._handles.get(lease_id)

    def drop_handle(self, lease_id: LeaseId) -> None:
        self.dropped.append(lease_id)
        handle = self._handles.pop(lease_id, None)
        if handle is not None and handle.descriptor is not None:
            os.close(handle.descriptor)

    def drop_handles(self, lease_ids: Collection[LeaseId]) -> None:
        for lease_id in lease_ids:
            self.drop_handle(lease_id)

    def close(self) -> None:
        for lease_id in list(self._handles):
            self.drop_handle(lease_id)

    def _make(self, tag: SlabTag) -> None:
        self.slabs[tag.lease_id] = tag
        if self.makes_cuda:
            handle = SlabHandle(keeper_pid=KEEPER_PID, canary=CANARY, cuda_ipc=bytes(64))
        else:
            memory = os.memfd_create("slab")
            os.ftruncate(memory, tag.nbytes)
            os.pwrite(memory, CANARY, 0)
            handle = SlabHandle(keeper_pid=KEEPER_PID, canary=CANARY, descriptor=memory)
        self._handles[tag.lease_id] = handle
        self._submit(SlabAllocated(lease_id=tag.lease_id))

    def _report(self, gpu: GpuUuid) -> GpuReport:
        return GpuReport(
            gpu=gpu,
            total_bytes=self._gpu_bytes,
            slab_bytes={
                tag.lease_id: tag.nbytes for tag in self.slabs.values() if tag.lender == gpu
            },
            owner_bytes=dict(self.owner_bytes[gpu]),
        )
