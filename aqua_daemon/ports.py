"""What the service needs from the outside, as protocols of a few verbs.

Adapters implement them; tests/fakes/ holds a fake of each.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from aqua_daemon.core.events import Event
from aqua_daemon.core.instructions import (
    AllocateSlab,
    FreeSlab,
    Instruction,
    ProbeLink,
    SendRevoke,
    TellLost,
)
from aqua_daemon.core.model import LeaseId, SessionId


class DescriptorKind(Enum):
    """What the descriptor of a slab is, and so how the holder maps it."""

    SHARED_MEMORY = "shared memory"
    CUDA_VMM = "cuda vmm"


class Clock(Protocol):
    """Monotonic seconds."""

    def __call__(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SlabHandle:
    """How the holder reaches a slab: one of a CUDA IPC handle and a descriptor."""

    keeper_pid: int
    canary: bytes  # the slab's first 64 bytes until the holder writes there
    cuda_ipc: bytes = b""  # empty: the handle is the descriptor
    descriptor: int | None = None  # stays the keepers' own: duplicate what outlives the call
    descriptor_kind: DescriptorKind = DescriptorKind.SHARED_MEMORY


class Keepers(Protocol):
    """The processes that own the memory. No verb waits or raises: outcomes are events."""

    def allocate(self, order: AllocateSlab) -> None:
        """Ends in SlabAllocated or SlabAllocationFailed, also when the keeper is gone."""

    def free(self, order: FreeSlab) -> None:
        """Ends in SlabFreed. Idempotent; kept and sent again while the keeper can't be reached."""

    def probe(self, order: ProbeLink) -> None:
        """Ends in LinkProbed, unless a keeper hangs; also when one is gone or too old to measure."""

    def handle(self, lease_id: LeaseId) -> SlabHandle | None:
        """The handle of a slab allocated by this daemon and not dropped yet; else None."""

    def drop_handle(self, lease_id: LeaseId) -> None:
        """The holder has the handle, or the lease is over: close what is kept. Idempotent."""

    def drop_handles(self, lease_ids: Collection[LeaseId]) -> None:
        """As `drop_handle`, for all that a client says it has: most of them long since dropped."""


class Sessions(Protocol):
    """The presence links. No verb waits or raises: a client that can't be reached is no error."""

    def send_revoke(self, order: SendRevoke, *, seconds: float) -> None:
        """Push a revoke, with the seconds that the client has from now."""

    def tell_lost(self, order: TellLost) -> None:
        """Push a loss. Ends in LossTold, also when nobody is there."""

    def forget(self, session_id: SessionId) -> None:
        """Close what belongs to a session that is over. Idempotent."""


class Journal(Protocol):
    """The story of the node: every event, and what it led to. Never raises."""

    def event(self, event: Event) -> None: ...

    def instructed(self, *wanted: Instruction) -> None: ...

    def refused(self, event: Event, error: Exception) -> None: ...
