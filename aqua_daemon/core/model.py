"""The nouns of the books: GPUs, sessions, leases, and the snapshot that others read.

Everything here is frozen; the ledger replaces records, it never edits them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Final, NewType

from aqua_daemon.core.sizes import (
    HOST_BYTES_PER_SECOND,
    MOST_TENANT_LEASES,
    MOST_TENANT_SESSIONS,
    RESTART_GRACE_SECONDS,
    TERM_SECONDS,
)

GpuUuid = NewType("GpuUuid", str)
LeaseId = NewType("LeaseId", str)
SessionId = NewType("SessionId", str)
TenantName = NewType("TenantName", str)
RequestId = NewType("RequestId", str)

SUB_TENANT_MARK = "+"  # "uid-1000/llm.service+blue"; in no name of a unit or a container


@lru_cache(maxsize=4096)  # asked for each change of a sum, and of few names
def owner_of(tenant: TenantName) -> TenantName:
    """The tenant whose quota and share this one divides: its own, unless it is a sub-tenant."""
    return TenantName(tenant.partition(SUB_TENANT_MARK)[0])


class SafetyClass(Enum):
    """What may happen to the bytes: `store` survives revokes, `cache` may be dropped at one."""

    STORE = "store"
    CACHE = "cache"


class LeaseState(Enum):
    """Where a slab is in its life; `lifecycle.TRANSITIONS` holds the moves."""

    __hash__ = object.__hash__  # every sum is looked up by it, and Enum's own is slow Python

    ALLOCATING = "allocating"
    LEASED = "leased"
    REVOKING = "revoking"
    QUARANTINED = "quarantined"
    RETURNED = "returned"
    FREEING = "freeing"
    LOST = "lost"


class SessionState(Enum):
    """How sure the broker is that the holder is there."""

    LIVE = "live"
    SUSPECT = "suspect"  # presence ended, or a keepalive was missed: no grants
    DEAD = "dead"  # the pidfd fired; its slabs wait for the sentinel


class LendingPolicy(Enum):
    """What of a GPU's idle memory is lent."""

    AUTO = "auto"  # what nobody has used for a settle time
    OFFERED = "offered"  # what a producer has offered
    NEVER = "never"


# The members by name: Python 3.11 takes as long to find one in its Enum as to do what is asked of it.
STORE: Final = SafetyClass.STORE
CACHE: Final = SafetyClass.CACHE
ALLOCATING: Final = LeaseState.ALLOCATING
LEASED: Final = LeaseState.LEASED
REVOKING: Final = LeaseState.REVOKING
QUARANTINED: Final = LeaseState.QUARANTINED
RETURNED: Final = LeaseState.RETURNED
FREEING: Final = LeaseState.FREEING
LOST: Final = LeaseState.LOST
LIVE: Final = SessionState.LIVE
SUSPECT: Final = SessionState.SUSPECT
DEAD: Final = SessionState.DEAD
AUTO: Final = LendingPolicy.AUTO
OFFERED: Final = LendingPolicy.OFFERED
NEVER: Final = LendingPolicy.NEVER


class RebalanceBlock(Enum):
    """Why nothing was moved although a tenant holds more than its share and another lacks some."""

    NO_WHOLE_SLAB = "no_whole_slab"  # none that is small enough to leave it its share
    OUT_OF_REACH = "out_of_reach"  # on the GPU of who wants it
    QUIET = "quiet"  # on a GPU that is left alone
    TOO_RECENT = "too_recent"  # granted a moment ago
    UNANSWERED = "unanswered"  # with a session that has not answered what it was asked before


class RevokeReason(Enum):
    """Why a lease is taken back."""

    __hash__ = object.__hash__  # as that of `LeaseState`

    RECLAIM = "reclaim"  # a producer asked
    OWNER = "owner"  # a new process came to the GPU
    RESERVE = "reserve"  # the GPU's own processes grew into the reserve
    REBALANCE = "rebalance"  # others lack their fair share
    DRAIN = "drain"  # an admin wants nothing lent there
    LAPSED = "lapsed"  # a whole term without contact
    UNCLAIMED = "unclaimed"  # the client has not named it for a whole term
    DEAD = "dead"  # the holder's process ended
    FAULT = "fault"  # the books and the keeper disagree about the slab


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """A process as the kernel tells it apart from every other, on one boot of one node."""

    pid: int
    start_ticks: int  # since boot, /proc/PID/stat field 22
    uid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRoom:
    """Host memory that a session holds for `store` data; a higher revision replaces a lower."""

    revision: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseUse:
    """What a client says of one of its leases. Trusted for order only."""

    lease_id: LeaseId
    used_bytes: int
    copy_bytes: int
    idle_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SlabTag:
    """What a keeper remembers of a slab, enough to rebuild the books from."""

    lease_id: LeaseId
    session_id: SessionId
    tenant: TenantName
    safety_class: SafetyClass
    lender: GpuUuid
    borrower: GpuUuid | None
    nbytes: int
    holder: ProcessIdentity
    request_id: RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLink:
    """How one GPU reaches another."""

    peer: GpuUuid
    kind: str  # "NV", or how far by PCIe: PIX, PXB, PHB, NODE, SYS
    count: int  # of bonded NVLinks; 0 by PCIe
    has_peer_access: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPair:
    """A link, by its two ends."""

    source: GpuUuid
    target: GpuUuid

    def __str__(self) -> str:
        return f"{self.source} to {self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRate:
    """A copy of n bytes takes latency_seconds + n / bytes_per_second."""

    latency_seconds: float
    bytes_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReport:
    """What a keeper says of one of its GPUs; it covers every instruction answered before it."""

    gpu: GpuUuid
    total_bytes: int
    slab_bytes: dict[LeaseId, int]  # every slab that the keeper holds now
    owner_bytes: dict[int, int]  # pid of each of the GPU's own processes, and what it uses
    other_bytes: int | None = None  # used by anything but slabs; None: the sum of the owners
    not_lending: str = ""  # why the keeper refuses to have it lent; else empty
    warnings: tuple[str, ...] = ()  # what an operator should know although it is lent
    model: str = ""
    links: tuple[GpuLink, ...] = ()  # to the other GPUs; none: it is not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """A revoke under way."""

    reason: RevokeReason
    started_at: float
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One session's right to one slab, and that slab."""

    lease_id: LeaseId
    session_id: SessionId
    tenant: TenantName
    lender: GpuUuid
    borrower: GpuUuid | None
    nbytes: int
    safety_class: SafetyClass
    request_id: RequestId
    state: LeaseState
    since: float  # when it came into this state
    revocation: Revocation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One client process with a live, authenticated link, or what is left of one."""

    session_id: SessionId
    tenant: TenantName
    process: ProcessIdentity
    home_gpu: GpuUuid | None
    is_admin: bool
    state: SessionState
    heard_at: float
    host_room: HostRoom
    sentinel_ended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """What the broker is told once, at its start."""

    gpus: tuple[GpuUuid, ...]  # whose keepers are to be heard before anything new is granted
    smallest_slab_bytes: int
    largest_slab_bytes: int
    host_pool_bytes: int  # for `store` data of all sessions together
    tenant_host_bytes: int  # for `store` data of one tenant
    tenant_quota_bytes: int  # slabs of one tenant, in any state but LOST
    tenant_quota_leases: int = MOST_TENANT_LEASES  # of one tenant, in any state but LOST
    tenant_quota_sessions: int = MOST_TENANT_SESSIONS  # until nothing of them is left
    admin_group: str = ""  # whose members are admins, to be named to those who are not
    lend_to_own_gpu: bool = False  # what one-GPU tests do
    rebalance_seconds: float = 0.0  # how often; 0: never, first come is first served
    host_bytes_per_second: float = HOST_BYTES_PER_SECOND  # of all evacuations together
    lend_over_pcie: bool = False  # though it is rarely faster than host memory
    lending: LendingPolicy = LendingPolicy.AUTO  # of GPUs that `lending_of` does not name
    lending_of: Mapping[GpuUuid, LendingPolicy] = field(default_factory=dict)
    settle_seconds: float = 0.0  # `auto` lends what nobody has used for so long
    ramp_seconds: float = 0.0  # until a GPU that begins to lend lends all; 0: at once
    newcomer_seconds: float = 0.0  # a new process's GPU is quiet so long; 0: it is as any other
    rest_seconds: float = 0.0  # nothing is lent so long where a second keeper ended; 0: it is
    term_seconds: float = TERM_SECONDS
    restart_grace_seconds: float = RESTART_GRACE_SECONDS

    @property
    def whom_to_ask(self) -> str:
        """How to ask as an admin, for those who are none."""
        if self.admin_group:
            return f"as root, as the daemon's user, or as a member of the group {self.admin_group}"
        return "as root or as the daemon's user"
