"""The books of one shm GPU: its slabs, its owners, and what is free.

Nothing here talks to anybody; `node` keeps several of these and the proofs of holders.
"""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from aqua_protos.keeper_pb2 import GpuReport, OwnerReport

from aqua_daemon.keeper.gpu import Copying, Gpu, OfferedMemory, ScrubFailed, SlabMemory
from aqua_daemon.keeper.refusal import Refused, exhausted
from aqua_daemon.keeper.shm_memory import make_shm_memory
from aqua_daemon.keeper.shm_probe import ShmProbe, copy_seconds


def shm_gpus(
    *, count: int, gpu_bytes: int, smallest_slab_bytes: int, largest_slab_bytes: int
) -> tuple[ShmGpu, ...]:
    """`SHM-0`, `SHM-1`, ... of that size each.

    Raises:
        ValueError: there would be none, or no room for one slab.
    """
    if count < 1 or not 0 < smallest_slab_bytes <= min(largest_slab_bytes, gpu_bytes):
        msg = (
            f"{count} GPUs of {gpu_bytes} bytes with slabs of {smallest_slab_bytes} to "
            f"{largest_slab_bytes}: give at least 1 GPU, with room for one of the smallest slabs"
        )
        raise ValueError(msg)
    return tuple(ShmGpu(name=f"SHM-{number}", total_bytes=gpu_bytes) for number in range(count))


@dataclass(slots=True, kw_only=True)
class ShmGpu(Gpu):
    """Never holds more than `total_bytes`, slabs and owners together."""

    total_bytes: int
    owner_bytes: dict[int, int] = field(default_factory=dict)
    probe_bytes: int = 0  # in measurements of links

    @property
    def used_by_owners_bytes(self) -> int:
        """What the GPU's own processes hold."""
        return sum(self.owner_bytes.values())

    @property
    def free_bytes(self) -> int:
        """What could be allocated now."""
        return self.total_bytes - self.slab_bytes - self.used_by_owners_bytes - self.probe_bytes

    def check_room(self, nbytes: int) -> None:
        """Refuse what does not fit, as the driver would.

        Raises:
            Refused: with every figure.
        """
        if nbytes > self.free_bytes:
            raise exhausted(
                f"{self.name} has {self.free_bytes} of {self.total_bytes} bytes free, {nbytes} are "
                f"asked for; slabs hold {self.slab_bytes}, its own processes "
                f"{self.used_by_owners_bytes}"
            )

    def make(self, lease_id: str, nbytes: int) -> SlabMemory:
        """A memfd; see `Gpu.make`."""
        self.check_room(nbytes)
        try:
            return make_shm_memory(f"aqua-{lease_id}", nbytes)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "?")
            raise exhausted(f"the kernel gave no memory: {name}: {error.strerror}") from error
        except ScrubFailed as error:
            raise Refused("INTERNAL", str(error)) from error

    def take_back(self, memory: SlabMemory) -> int:
        """The kernel has all of it at once; see `Gpu.take_back`."""
        memory.close()
        return 0

    def probe_memory(self, nbytes: int) -> OfferedMemory:
        """Anonymous memory; see `Gpu.probe_memory`."""
        self.check_room(nbytes)
        try:
            memory = ShmProbe(nbytes=nbytes, on_close=self._probe_closed)
        except OSError as error:
            raise exhausted(f"the kernel gave no memory: {error.strerror}") from error
        self.probe_bytes += nbytes
        return memory

    def copying(self) -> AbstractContextManager[Copying]:
        """The memory's own speed; see `Gpu.copying`."""
        return nullcontext(copy_seconds)

    def _probe_closed(self, nbytes: int) -> None:
        self.probe_bytes -= nbytes

    def set_owner(self, pid: int, nbytes: int, *, what_fits: bool) -> int:
        """What the process says, as far as it fits; see `Gpu.set_owner`."""
        has_bytes = self.owner_bytes.get(pid, 0)
        if what_fits:
            nbytes = min(nbytes, has_bytes + self.free_bytes)
        self.check_room(nbytes - has_bytes)
        if nbytes:
            self.owner_bytes[pid] = nbytes
        else:
            self.owner_bytes.pop(pid, None)
        return nbytes

    def end_owner(self, pid: int) -> None:
        """See `Gpu.end_owner`."""
        self.owner_bytes.pop(pid, None)

    def has_owner(self, pid: int | None) -> bool:
        """See `Gpu.has_owner`."""
        return bool(self.owner_bytes) if pid is None else pid in self.owner_bytes

    def report(self) -> GpuReport:
        """See `Gpu.report`."""
        return GpuReport(
            gpu=self.name,
            total_bytes=self.total_bytes,
            slabs=self.slab_reports,
            owners=[
                OwnerReport(pid=pid, nbytes=nbytes) for pid, nbytes in self.owner_bytes.items()
            ],
            freed_while_mapped=self.freed_while_mapped,
            other_bytes=self.used_by_owners_bytes + self.probe_bytes,
        )
