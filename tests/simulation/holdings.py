"""What a client holds: slabs that it maps, items in them and in host memory, and their stamps.

An item is so many bytes with a stamp for their content. Reading one back must give its stamp;
the only excuse is a slab that was lost with its keeper.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from aqua_daemon.core.model import GpuUuid, HostRoom, Lease, LeaseId, LeaseUse, SafetyClass
from tests.simulation.stage import Stage
from tests.simulation.truth import Process, Slab


class BytesDiffer(AssertionError):
    """A client did not read back what it stored."""


@dataclass(slots=True, kw_only=True)
class Item:
    """Bytes that the client wants back."""

    stamp: int
    nbytes: int
    safety_class: SafetyClass
    lease_id: LeaseId | None  # None: in host memory


@dataclass(slots=True, kw_only=True)
class HeldSlab:
    """A slab as its holder sees it."""

    lease: Lease
    slab: Slab
    used_bytes: int = 0
    is_fenced: bool = False  # a revoke is being served: nothing new goes there
    revokes: int = 0  # how often it was asked back
    numbers: dict[int, None] = field(default_factory=dict)


class Holdings:
    """The slabs and items of one client process."""

    def __init__(self, process: Process, stage: Stage) -> None:
        self.slabs: dict[LeaseId, HeldSlab] = {}
        self.items: dict[int, Item] = {}
        self.host_bytes = 0  # of `store` items
        self.asked_bytes = 0  # host bytes asked for and not used yet
        self.is_unbacked = False  # its session was not known any more: nothing is reserved for it
        self._process = process
        self._stage = stage
        self._room = HostRoom(revision=0, nbytes=0)

    def host_room(self) -> HostRoom:
        """What is said to the daemon: absolute, with a revision that grows with each change."""
        nbytes = self.host_bytes + self.asked_bytes
        if nbytes != self._room.nbytes:
            self._room = HostRoom(revision=self._room.revision + 1, nbytes=nbytes)
        return self._room

    def uses(self) -> tuple[LeaseUse, ...]:
        """What a keepalive says of every lease that the client knows."""
        return tuple(
            LeaseUse(
                lease_id=lease_id,
                used_bytes=held.used_bytes,
                copy_bytes=held.used_bytes,
                idle_seconds=self._stage.chance.between(0, 5),
            )
            for lease_id, held in self.slabs.items()
        )

    def others_on(self, gpu: GpuUuid) -> list[LeaseId]:
        """Slabs there that nobody has asked for, the emptiest first."""
        there = [one for one in self.slabs.values() if one.lease.lender == gpu]
        there.sort(key=lambda held: held.used_bytes)
        return [held.lease.lease_id for held in there if not held.is_fenced]

    def take(self, lease: Lease, slab: Slab) -> None:
        """Map a slab that was granted."""
        if slab.items:
            msg = f"slab {lease.lease_id} was granted with bytes in it"
            raise BytesDiffer(msg)
        self._process.map(slab)
        self.slabs[lease.lease_id] = HeldSlab(lease=lease, slab=slab)

    def put(self, nbytes: int, safety_class: SafetyClass) -> bool:
        """Store an item in a slab of its class that has room."""
        item = self._item(nbytes, safety_class)
        held = self._with_room(item)
        if held is None:
            return False
        number = int(self._stage.chance.new_id(), 16)
        self.items[number] = item
        self._write(number, item, held)
        return True

    def put_in_host(self, nbytes: int) -> None:
        """Store an item in host memory, where the ledger has given room."""
        number = int(self._stage.chance.new_id(), 16)
        self.items[number] = self._item(nbytes, SafetyClass.STORE)
        self.host_bytes += nbytes

    def read(self, number: int) -> None:
        """Fetch an item and compare it with what was stored; lost with its keeper, it is gone."""
        item = self.items[number]
        if item.lease_id is None:
            self._stage.count("fetches from host")
            return
        held = self.slabs[item.lease_id]
        if held.slab.is_lost:
            self._stage.count("items lost with their keeper")
            self.forget(number)
            return
        found = held.slab.items.get(number)
        if found != item.stamp:
            msg = f"item {number} of {item.nbytes} bytes in slab {item.lease_id} read as {found}"
            raise BytesDiffer(msg)
        self._stage.count("fetches from peers")

    def forget(self, number: int) -> None:
        """Release an item."""
        item = self.items.pop(number)
        if item.lease_id is None:
            self.host_bytes -= item.nbytes
        else:
            self._erase(number, item)

    def evacuate(self, lease_id: LeaseId) -> None:
        """Move what a slab holds elsewhere, or to host memory; drop what is `cache`."""
        held = self.slabs[lease_id]
        held.is_fenced = True
        for number in list(held.numbers):
            item = self.items[number]
            self.read(number)
            if number not in self.items:
                continue
            if item.safety_class is SafetyClass.CACHE:
                self.forget(number)
                continue
            self._erase(number, item)
            self._stage.count("items evacuated")
            elsewhere = self._with_room(item) if self._stage.chance.happens(0.3) else None
            if elsewhere is None:
                item.lease_id = None
                self.host_bytes += item.nbytes
            else:
                self._write(number, item, elsewhere)

    def close(self, lease_id: LeaseId) -> None:
        """Unmap a slab; what is still in it is forgotten."""
        held = self.slabs[lease_id]
        for number in list(held.numbers):
            self.forget(number)
        self._process.unmap(lease_id)
        del self.slabs[lease_id]

    def _item(self, nbytes: int, safety_class: SafetyClass) -> Item:
        stamp = self._stage.chance.rng.getrandbits(32)
        return Item(stamp=stamp, nbytes=nbytes, safety_class=safety_class, lease_id=None)

    def _with_room(self, item: Item) -> HeldSlab | None:
        for held in self.slabs.values():
            if (
                not held.is_fenced
                and held.lease.safety_class is item.safety_class
                and held.lease.nbytes - held.used_bytes >= item.nbytes
            ):
                return held
        return None

    def _write(self, number: int, item: Item, held: HeldSlab) -> None:
        item.lease_id = held.lease.lease_id
        held.used_bytes += item.nbytes
        held.numbers[number] = None
        if not held.slab.is_gone:
            held.slab.items[number] = item.stamp

    def _erase(self, number: int, item: Item) -> None:
        if item.lease_id is not None:
            held = self.slabs[item.lease_id]
            held.used_bytes -= item.nbytes
            del held.numbers[number]
            held.slab.items.pop(number, None)
