"""Keepers: the processes that own the slabs. They carry out orders one by one, and report."""

from __future__ import annotations

from collections.abc import Callable

from aqua_daemon.core.events import KeeperAttached, SlabAllocated, SlabAllocationFailed, SlabFreed
from aqua_daemon.core.model import GpuReport, GpuUuid, LeaseId, SlabTag
from tests.simulation.chance import Chance
from tests.simulation.truth import Gpu, Slab

_ALLOCATION_FAULT = 0.03


class Keeper:
    """One keeper process: true state, no opinion. The memory dies with it, the GPUs do not."""

    def __init__(
        self,
        gpus: list[Gpu],
        *,
        chance: Chance,
        on_free: Callable[[Slab], None],
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self.gpus = {gpu.uuid: gpu for gpu in gpus}
        self.is_alive = True
        self._chance = chance
        self._on_free = on_free
        self._on_failure = on_failure

    @property
    def uuids(self) -> tuple[GpuUuid, ...]:
        """The GPUs that it keeps."""
        return tuple(self.gpus)

    def allocate(self, tag: SlabTag) -> SlabAllocated | SlabAllocationFailed:
        """Make the slab if the driver has the bytes."""
        gpu = self.gpus[tag.lender]
        if gpu.free_bytes < tag.nbytes or self._chance.strikes(_ALLOCATION_FAULT):
            self._on_failure()
            return SlabAllocationFailed(lease_id=tag.lease_id, message="out of memory")
        if tag.lease_id in gpu.slabs:
            msg = f"asked twice to make slab {tag.lease_id}"
            raise AssertionError(msg)
        gpu.slabs[tag.lease_id] = Slab(tag=tag)
        return SlabAllocated(lease_id=tag.lease_id)

    def free(self, gpu: GpuUuid, lease_id: LeaseId) -> SlabFreed:
        """Scrub and free; freeing what is not there is no error."""
        slab = self.gpus[gpu].slabs.get(lease_id)
        if slab is not None:
            self._on_free(slab)
            slab.items.clear()
            slab.is_gone = True
            del self.gpus[gpu].slabs[lease_id]
        return SlabFreed(lease_id=lease_id)

    def report(self, gpu: GpuUuid) -> GpuReport:
        """One GPU as it is now."""
        kept = self.gpus[gpu]
        return GpuReport(
            gpu=gpu,
            total_bytes=kept.total_bytes,
            slab_bytes={lease_id: slab.tag.nbytes for lease_id, slab in kept.slabs.items()},
            owner_bytes=dict(kept.owners),
        )

    def attached(self) -> KeeperAttached:
        """Everything that a daemon must know of it."""
        return KeeperAttached(
            reports=tuple(self.report(gpu) for gpu in self.gpus),
            slabs=tuple(slab.tag for gpu in self.gpus.values() for slab in gpu.slabs.values()),
        )

    def end(self) -> None:
        """The process ends, and every slab with it."""
        self.is_alive = False
        for gpu in self.gpus.values():
            for slab in gpu.slabs.values():
                slab.items.clear()
                slab.is_gone = slab.is_lost = True
            gpu.slabs.clear()
