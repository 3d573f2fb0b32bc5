"""What really is: processes, what they map, GPUs, slabs and the bytes in them.

Nothing here knows the broker. Bytes are stamps: an item is a number that was written to a slab,
and a slab remembers whose processes could ever read it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from aqua_daemon.core.model import GpuUuid, LeaseId, ProcessIdentity, SlabTag, TenantName


@dataclass(slots=True, kw_only=True, eq=False)
class Slab:
    """An allocation in a keeper's hands."""

    tag: SlabTag
    items: dict[int, int] = field(default_factory=dict)  # what is written there: item -> stamp
    mappers: list[Process] = field(default_factory=list)  # whoever maps it, living or dead
    readers: dict[TenantName, None] = field(default_factory=dict)  # tenants who ever could read it
    is_gone: bool = False  # freed, or lost with its keeper
    is_lost: bool = False  # lost with its keeper


class Process:
    """A process of a tenant, with its forked children."""

    def __init__(self, identity: ProcessIdentity, tenant: TenantName) -> None:
        self.identity = identity
        self.tenant = tenant
        self.is_alive = True
        self.is_stopped = False
        self.children: list[Process] = []
        self.mapped: dict[LeaseId, Slab] = {}

    @property
    def family_lives(self) -> bool:
        """Whether it, or a child that inherited its mappings and its sentinel, still lives."""
        return self.is_alive or any(child.is_alive for child in self.children)

    def map(self, slab: Slab) -> None:
        """Make the bytes of *slab* readable to this process."""
        self.mapped[slab.tag.lease_id] = slab
        slab.mappers.append(self)
        slab.readers[self.tenant] = None

    def unmap(self, lease_id: LeaseId) -> None:
        """Close the mapping, if there is one."""
        slab = self.mapped.pop(lease_id, None)
        if slab is not None:
            slab.mappers.remove(self)

    def fork(self, pid: int) -> Process:
        """A child that maps what its parent maps now."""
        identity = ProcessIdentity(
            pid=pid, start_ticks=self.identity.start_ticks + 1, uid=self.identity.uid
        )
        child = Process(identity, self.tenant)
        for slab in self.mapped.values():
            child.map(slab)
        self.children.append(child)
        return child

    def end(self) -> None:
        """The kernel takes everything of it, whatever it was doing."""
        self.is_alive = False
        for lease_id in list(self.mapped):
            self.unmap(lease_id)


class Gpu:
    """A GPU: so many bytes, its own processes, and the slabs that a keeper made there."""

    def __init__(self, uuid: GpuUuid, total_bytes: int) -> None:
        self.uuid = uuid
        self.total_bytes = total_bytes
        self.owners: dict[int, int] = {}
        self.slabs: dict[LeaseId, Slab] = {}

    @property
    def free_bytes(self) -> int:
        """What the driver would still give away."""
        held = sum(slab.tag.nbytes for slab in self.slabs.values())
        return self.total_bytes - sum(self.owners.values()) - held
