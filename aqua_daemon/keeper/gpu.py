"""The books of one shm GPU: its slabs, its owners, and what is free.

Nothing here talks to anybody; `node` keeps several of these and the proofs of holders.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from aqua_protos.keeper_pb2 import GpuReport, OwnerReport, SlabReport, SlabTag

from aqua_daemon.keeper.memory import SlabMemory
from aqua_daemon.keeper.refusal import exhausted


@dataclass(slots=True, kw_only=True)
class Slab:
    """One slab, from its allocation to its end."""

    tag: SlabTag
    memory: SlabMemory
    was_mapped_at_free: bool = False


@dataclass(slots=True, kw_only=True)
class ShmGpu:
    """Never holds more than `total_bytes`, slabs and owners together."""

    name: str
    total_bytes: int
    slabs: dict[str, Slab] = field(default_factory=dict)
    owner_bytes: dict[int, int] = field(default_factory=dict)
    freed_while_mapped: int = 0

    @property
    def slab_bytes(self) -> int:
        """Of every slab that is not freed, mapped by a living process or not."""
        return sum(slab.memory.nbytes for slab in self.slabs.values())

    @property
    def used_by_owners_bytes(self) -> int:
        """What the GPU's own processes hold."""
        return sum(self.owner_bytes.values())

    @property
    def free_bytes(self) -> int:
        """What could be allocated now."""
        return self.total_bytes - self.slab_bytes - self.used_by_owners_bytes

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

    def set_owner(self, pid: int, nbytes: int, *, what_fits: bool) -> int:
        """Set what the process uses here; what it has now.

        Raises:
            Refused: the growth does not fit, and *what_fits* was not asked for.
        """
        has_bytes = self.owner_bytes.get(pid, 0)
        if what_fits:
            nbytes = min(nbytes, has_bytes + self.free_bytes)
        self.check_room(nbytes - has_bytes)
        if nbytes:
            self.owner_bytes[pid] = nbytes
        else:
            self.owner_bytes.pop(pid, None)
        return nbytes

    def report(self) -> GpuReport:
        """All of this, for the daemon."""
        return GpuReport(
            gpu=self.name,
            total_bytes=self.total_bytes,
            slabs=[
                SlabReport(tag=slab.tag, nbytes=slab.memory.nbytes) for slab in self.slabs.values()
            ],
            owners=[
                OwnerReport(pid=pid, nbytes=nbytes) for pid, nbytes in self.owner_bytes.items()
            ],
            freed_while_mapped=self.freed_while_mapped,
        )
