"""What can happen to the broker, in the past tense. `Event` is their union.

Three sources: keepers (what became of an instruction, what a GPU looks like), the kernel's word
about client processes, and requests of sessions. A request carries the id that its answer will
carry; what the broker refuses at once it raises, what it answers it answers by an instruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from aqua_daemon.core.link_figures import LinkOutcome, LinkUse
from aqua_daemon.core.model import (
    GpuPair,
    GpuReport,
    GpuUuid,
    HostRoom,
    LeaseId,
    LeaseUse,
    ProcessIdentity,
    RequestId,
    SafetyClass,
    SessionId,
    SlabTag,
    TenantName,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperAttached:
    """The link to a keeper is up; this is all that it holds."""

    reports: tuple[GpuReport, ...]
    slabs: tuple[SlabTag, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperDetached:
    """The link to a keeper broke while its process lives: nothing new there until it is back."""

    gpus: tuple[GpuUuid, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperEnded:
    """A keeper's process is gone, and its slabs with it."""

    gpus: tuple[GpuUuid, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReported:
    """A keeper told how one GPU is now."""

    report: GpuReport


@dataclass(frozen=True, slots=True, kw_only=True)
class SlabAllocated:
    """A keeper has made, scrubbed and tagged the slab."""

    lease_id: LeaseId


@dataclass(frozen=True, slots=True, kw_only=True)
class SlabAllocationFailed:
    """A keeper could not make the slab."""

    lease_id: LeaseId
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SlabFreed:
    """A keeper has scrubbed the slab and freed it to the driver."""

    lease_id: LeaseId
    scrubbed_bytes: int = 0  # nothing to scrub: it was gone already, or could not be scrubbed
    unreturned_bytes: int = 0  # what the driver still counts as used, so that it is not free


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkProbed:
    """A keeper has measured a link, or could not."""

    request_id: RequestId
    outcome: LinkOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened:
    """A process has said hello and the kernel has said who it is."""

    session_id: SessionId
    tenant: TenantName
    process: ProcessIdentity
    home_gpu: GpuUuid | None
    is_admin: bool
    is_observer: bool = False  # by its own word: what it does counts, that it came is no news


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionReattached:
    """The same process is back on a new presence connection, to this daemon or a new one."""

    session_id: SessionId
    request_id: RequestId
    tenant: TenantName  # for a session that a new daemon knows nothing of; else it stays as it was
    process: ProcessIdentity
    home_gpu: GpuUuid | None
    is_admin: bool
    uses: tuple[LeaseUse, ...]
    host_room: HostRoom


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceEnded:
    """The presence connection closed; the process may live."""

    session_id: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessEnded:
    """The client's pidfd fired."""

    session_id: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class SentinelEnded:
    """Nobody holds the client's end of the sentinel any more."""

    session_id: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionClosed:
    """The client said goodbye, having unmapped everything."""

    session_id: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepaliveReceived:
    """A session's sign of life; it names every lease that the client knows."""

    session_id: SessionId
    request_id: RequestId
    uses: tuple[LeaseUse, ...]
    host_room: HostRoom


@dataclass(frozen=True, slots=True, kw_only=True)
class LinksUsed:
    """A session said how long fetches took since it last said so."""

    session_id: SessionId
    uses: tuple[LinkUse, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequested:
    """A session wants one slab."""

    session_id: SessionId
    request_id: RequestId
    lease_id: LeaseId  # for the lease if there will be one; new each time
    nbytes: int
    safety_class: SafetyClass
    wanted_bytes: int = 0  # all that it would put into leases, this slab among it


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasesReleased:
    """A session gave slabs back by itself, unmapped."""

    session_id: SessionId
    request_id: RequestId
    lease_ids: tuple[LeaseId, ...]
    host_room: HostRoom | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeAcknowledged:
    """A session evacuated, drained and unmapped what was revoked."""

    session_id: SessionId
    request_id: RequestId
    lease_ids: tuple[LeaseId, ...]
    host_room: HostRoom | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeOffered:
    """A session would rather give other leases back than some of those that were revoked."""

    session_id: SessionId
    request_id: RequestId
    spared: tuple[LeaseId, ...]  # revoked, to be kept
    offered: tuple[LeaseId, ...]  # to be given back instead


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRoomRequested:
    """A session wants to hold this much `store` data in host memory."""

    session_id: SessionId
    request_id: RequestId
    host_room: HostRoom


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferMade:
    """A process of a GPU said how many of its bytes may be lent."""

    session_id: SessionId
    request_id: RequestId
    gpu: GpuUuid
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimRequested:
    """A process of a GPU wants lent bytes back."""

    session_id: SessionId
    request_id: RequestId
    gpu: GpuUuid
    nbytes: int
    deadline_seconds: float | None  # None: the standard deadline


class Unchanged(Enum):
    """Stands for what a setting leaves as it is."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaSet:
    """An admin set what a tenant may hold. None: the default."""

    session_id: SessionId
    request_id: RequestId
    tenant: TenantName
    nbytes: int | Unchanged | None
    revision: int | None  # that the setting is to have; None: the next
    leases: int | Unchanged | None = UNCHANGED
    sessions: int | Unchanged | None = UNCHANGED
    weight: float | Unchanged | None = UNCHANGED
    priority: int | Unchanged | None = UNCHANGED


@dataclass(frozen=True, slots=True, kw_only=True)
class QuiesceRequested:
    """An admin wants a GPU left alone for a while, or no longer."""

    session_id: SessionId
    request_id: RequestId
    gpu: GpuUuid
    seconds: float  # from now; 0: no longer
    takes_back: bool = False  # first, all that is lent there


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequested:
    """An admin wants nothing lent on some GPUs until it says otherwise."""

    session_id: SessionId
    request_id: RequestId
    gpus: tuple[GpuUuid, ...]  # none named: all of the node
    deadline_seconds: float | None  # None: the standard deadline
    is_dry_run: bool = False  # only to be told who would be hit


@dataclass(frozen=True, slots=True, kw_only=True)
class UndrainRequested:
    """An admin lets GPUs be lent again."""

    session_id: SessionId
    request_id: RequestId
    gpus: tuple[GpuUuid, ...]  # none named: all that are drained


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkProbeRequested:
    """An admin wants to know how fast some links are, all of them at the same time."""

    session_id: SessionId
    request_id: RequestId
    pairs: tuple[GpuPair, ...]
    sizes: tuple[int, ...] = ()  # of the copies, in bytes; none: the usual ones


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTold:
    """A session has been told which of its leases are lost (or is not there to be told)."""

    lease_ids: tuple[LeaseId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked:
    """Time has passed. Deadlines, terms and the restart's grace are looked at now."""


KeeperEvent = (
    KeeperAttached
    | KeeperDetached
    | KeeperEnded
    | GpuReported
    | SlabAllocated
    | SlabAllocationFailed
    | SlabFreed
    | LinkProbed
)
HolderEvent = (
    SessionOpened
    | SessionReattached
    | PresenceEnded
    | ProcessEnded
    | SentinelEnded
    | SessionClosed
    | KeepaliveReceived
    | LinksUsed
    | LossTold
)
RequestEvent = (
    LeaseRequested
    | LeasesReleased
    | RevokeAcknowledged
    | ExchangeOffered
    | HostRoomRequested
    | OfferMade
    | ReclaimRequested
    | QuotaSet
    | QuiesceRequested
    | DrainRequested
    | UndrainRequested
    | LinkProbeRequested
)
Event = KeeperEvent | HolderEvent | RequestEvent | Ticked
