"""What a keeper keeps: the slabs of a GPU, whatever the GPU is made of.

Covers what `node` and `server` need of memory and of a GPU. The two kinds are beside it: `shm_gpu`
and `shm_memory`, `cuda_gpu` and `cuda_memory`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from aqua_protos.keeper_pb2 import (
    DESCRIPTOR_KIND_UNSPECIFIED,
    DescriptorKind,
    GpuReport,
    SlabReport,
    SlabTag,
)

from aqua_daemon.keeper.mappings import Mapped
from aqua_daemon.keeper.refusal import Refused

CANARY_BYTES = 64


class ScrubFailed(Exception):
    """Bytes that should be gone are there: the slab must not be counted as free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """What travels to the holder: one of a legacy CUDA IPC handle and a descriptor."""

    cuda_ipc: bytes = b""
    descriptor: int | None = None  # the receiver's to close
    descriptor_kind: DescriptorKind = DESCRIPTOR_KIND_UNSPECIFIED

    def close(self) -> None:
        """Close the descriptor, if there is one."""
        if self.descriptor is not None:
            os.close(self.descriptor)


class SlabMemory(Protocol):
    """One allocation, made for one lease. Zero at first, but for the canary at its start."""

    @property
    def nbytes(self) -> int:
        """How large it is."""
        ...

    @property
    def canary(self) -> bytes:
        """Its first 64 bytes, until the holder writes there."""
        ...

    def handle_for_holder(self) -> Handle:
        """What travels to the holder; the caller closes it.

        Raises:
            Refused: there is no descriptor left for it, or the driver makes none.
        """
        ...

    def mapped(self, *, likely_pid: int) -> Mapped:
        """Whether any process maps it; *likely_pid* is looked at first."""
        ...

    def scrub(self) -> int:
        """Remove every byte of a slab that nobody maps; how many.

        Raises:
            ScrubFailed: somebody could still see or change bytes in it. Nothing is lost by trying
                again.
            Refused: the driver failed.
        """
        ...

    def close(self) -> None:
        """Give it back. May be called twice.

        Raises:
            Refused: the driver failed; it is as it was.
        """
        ...


class ProbeMemory(Protocol):
    """One end of a link that is measured."""

    @property
    def address(self) -> int:
        """Where it is, for the copies of its GPU's keeper."""
        ...

    def close(self) -> None:
        """Give it back, or let go of what is another's. May be called twice; never raises."""
        ...


class OfferedMemory(ProbeMemory, Protocol):
    """One that another keeper may reach."""

    def handle(self) -> Handle:
        """What travels there; the caller closes it.

        Raises:
            Refused: the driver makes none.
        """
        ...


# Seconds that a copy of so many bytes takes, from the first to the second.
Copying = Callable[[ProbeMemory, ProbeMemory, int], float]


@dataclass(slots=True, kw_only=True)
class Slab:
    """One slab, from its allocation to its end."""

    tag: SlabTag
    memory: SlabMemory
    was_mapped_at_free: bool = False


@dataclass(slots=True, kw_only=True)
class Gpu(ABC):
    """One GPU and the slabs there."""

    name: str
    slabs: dict[str, Slab] = field(default_factory=dict)
    freed_while_mapped: int = 0

    @property
    def slab_bytes(self) -> int:
        """Of every slab that is not freed, mapped by a living process or not."""
        return sum(slab.memory.nbytes for slab in self.slabs.values())

    @property
    def slab_reports(self) -> list[SlabReport]:
        """Every slab, for the daemon."""
        return [SlabReport(tag=slab.tag, nbytes=slab.memory.nbytes) for slab in self.slabs.values()]

    @property
    def failure(self) -> str:
        """Why no slab can be made here ever again; else empty."""
        return ""

    @abstractmethod
    def make(self, lease_id: str, nbytes: int) -> SlabMemory:
        """New memory, scrubbed, with a canary; it is the caller's.

        Raises:
            Refused: there is no room, or it can't be made; nothing is left behind.
        """

    @abstractmethod
    def take_back(self, memory: SlabMemory) -> int:
        """Give memory back to where it came from; how much of it is used all the same.

        Raises:
            Refused: the driver failed; it is as it was.
        """

    @abstractmethod
    def set_owner(self, pid: int, nbytes: int, *, what_fits: bool) -> int:
        """Set what the process uses here; what it has now.

        Raises:
            Refused: the growth does not fit, and *what_fits* was not asked for; or owners need not
                say what they use.
        """

    @abstractmethod
    def end_owner(self, pid: int) -> None:
        """The process has ended, and what it used is free. Idempotent."""

    @abstractmethod
    def has_owner(self, pid: int | None) -> bool:
        """Whether *pid* (None: anybody) has said that it uses this GPU."""

    @abstractmethod
    def report(self) -> GpuReport:
        """All of this, for the daemon."""

    @abstractmethod
    def probe_memory(self, nbytes: int) -> OfferedMemory:
        """Memory here that is no slab, to measure links with; it counts as used.

        Raises:
            Refused: there is no room, or it can't be made; nothing is left behind.
        """

    def host_probe_memory(self, nbytes: int) -> ProbeMemory:
        """Host memory as the fastest copies want it.

        Raises:
            Refused: there is none, or it would show nothing.
        """
        del nbytes
        raise Refused("FAILED_PRECONDITION", "a stand-in GPU is host memory itself")

    def foreign_probe_memory(self, handle: Handle, nbytes: int) -> ProbeMemory:
        """What another keeper has offered, mapped on this GPU; *handle* stays the caller's.

        Raises:
            Refused: it can't be opened here; nothing is left behind.
        """
        del handle, nbytes
        raise Refused("FAILED_PRECONDITION", f"{self.name} is a stand-in: its peers are kept here")

    @abstractmethod
    def copying(self) -> AbstractContextManager[Copying]:
        """What copies and looks at the clock, on the thread that enters this.

        Raises, as its copies do:
            Refused: the driver failed.
        """

    def look(self) -> None:  # noqa: B027 - most kinds have nothing to look at
        """Once a second: do what has become possible. Never raises."""

    def close(self) -> None:
        """Give everything back. May be called twice."""
        for slab in self.slabs.values():
            try:
                slab.memory.close()
            except Refused:
                continue  # the process ends, and the driver takes back what it had
        self.slabs.clear()
