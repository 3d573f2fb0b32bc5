"""What all processes of a fake node have: contexts, allocations, and who keeps each alive.

An allocation lives as long as anybody *holds* it: its owner until it frees it, an importer until
it closes it, a VMM handle until it is released, a mapping until it is unmapped, and an exported
descriptor until its last copy is closed (registry.py sees that by a lock on the file).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Holder = str  # pid:start time; equal for no two processes of a boot
HoldKind = Literal["owner", "import", "handle", "mapping"]


@dataclass(kw_only=True)
class Context:
    """The primary context of a process on a GPU."""

    holder: Holder
    pid: int
    uuid: str
    nbytes: int
    through_mps: bool


@dataclass(kw_only=True)
class Allocation:
    """Physical memory of a GPU; its bytes are in a file named by its number."""

    number: int
    uuid: str
    nbytes: int  # of the device, a multiple of 2 MiB
    requested_bytes: int
    is_vmm: bool
    exportable: bool
    owner: Holder
    owner_pid: int
    address: int = 0  # in the owner
    is_freed: bool = False
    has_descriptors: bool = False


@dataclass(kw_only=True)
class Hold:
    """One process keeps one allocation alive, for one of its devices, this many times."""

    holder: Holder
    pid: int
    number: int
    kind: HoldKind
    uuid: str  # the GPU whose context opened it; the allocation's own for its owner
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class FreedWhileMapped:
    """An owner freed what others had mapped."""

    number: int
    uuid: str
    nbytes: int
    mapped_by: tuple[int, ...]  # pids


@dataclass(kw_only=True)
class Books:
    """The whole changing state of a node."""

    last_number: int = 0
    contexts: list[Context] = field(default_factory=list)
    contexts_made: int = 0
    allocations: dict[int, Allocation] = field(default_factory=dict)
    holds: list[Hold] = field(default_factory=list)
    heirs: dict[Holder, list[Holder]] = field(default_factory=dict)  # forked children
    others: dict[str, dict[int, int]] = field(default_factory=dict)  # uuid -> pid -> bytes
    freed_while_mapped: list[FreedWhileMapped] = field(default_factory=list)
    touched_after_unmap: int = 0
    lost: list[int] = field(default_factory=list)  # allocations that ended with their exporter

    def used_bytes(self, uuid: str) -> int:
        """All that is used on a GPU but what the system keeps."""
        contexts = sum(context.nbytes for context in self.contexts if context.uuid == uuid)
        slabs = sum(kept.nbytes for kept in self.allocations.values() if kept.uuid == uuid)
        return contexts + slabs + sum(self.others.get(uuid, {}).values())

    def bytes_by_pid(self, uuid: str) -> dict[int, int]:
        """As NVML charges them: an allocation whose exporter is gone goes to its importer."""
        charged = dict(self.others.get(uuid, {}))
        for context in self.contexts:
            if context.uuid == uuid:
                charged[context.pid] = charged.get(context.pid, 0) + context.nbytes
        for allocation in self.allocations.values():
            holds = self.holds_of(allocation.number)
            if allocation.uuid == uuid and holds:
                pid = min(holds, key=lambda hold: hold.kind == "import").pid
                charged[pid] = charged.get(pid, 0) + allocation.nbytes
        return charged

    def grow_context(self, holder: Holder, uuid: str, nbytes: int) -> None:
        """A process's context on a GPU takes so much more."""
        for context in self.contexts:
            if (context.holder, context.uuid) == (holder, uuid):
                context.nbytes += nbytes

    def holds_of(self, number: int, *kinds: HoldKind) -> list[Hold]:
        return [
            hold
            for hold in self.holds
            if hold.number == number and (hold.kind in kinds or not kinds)
        ]

    def hold(self, new: Hold) -> None:
        """Add one hold, or count one more of what is there."""
        for hold in self.holds:
            if _key(hold) == _key(new):
                hold.count += new.count
                return
        self.holds.append(new)

    def let_go(self, old: Hold) -> None:
        """Take one away."""
        for hold in self.holds:
            if _key(hold) == _key(old):
                hold.count -= 1
        self.holds = [hold for hold in self.holds if hold.count > 0]

    def drop_holders(self, is_gone: Callable[[Holder], bool]) -> None:
        """Forget what processes had that are gone, with those that they left behind."""
        self.heirs = {
            holder: living
            for holder, heirs in self.heirs.items()
            if (living := [heir for heir in heirs if not is_gone(heir)])
        }
        holders = {context.holder for context in self.contexts}
        holders |= {hold.holder for hold in self.holds}
        gone = {holder for holder in holders if holder not in self.heirs and is_gone(holder)}
        if gone:
            self.contexts = [context for context in self.contexts if context.holder not in gone]
            self.holds = [hold for hold in self.holds if hold.holder not in gone]


def _key(hold: Hold) -> tuple[Holder, int, HoldKind, str]:
    return hold.holder, hold.number, hold.kind, hold.uuid
