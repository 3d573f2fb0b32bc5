"""What the client tells the daemon and hears from it, as records.

Does not cover how they travel: `wire` turns them into protobuf and back.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from aqua_client.errors import BrokerUnreachable, Refused

OTHER_PROTOCOL = "protocol"  # client and daemon are more than one release apart


class SafetyClass(enum.Enum):
    """What must happen to the bytes when their slab is asked back."""

    STORE = "store"  # they are moved
    CACHE = "cache"  # they may be dropped

    # By identity, as there is one of each: an Enum's own takes longer than the look-up.
    __hash__ = object.__hash__


class DescriptorKind(enum.Enum):
    """What a slab's descriptor is."""

    SHARED_MEMORY = "shared_memory"  # to be mapped with mmap
    CUDA_VMM = "cuda_vmm"  # an allocation of CUDA's, to be imported


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A lease that was granted, and how to reach its slab. The receiver owns *descriptor*."""

    lease_id: str
    lender_gpu: str
    nbytes: int
    safety_class: SafetyClass
    keeper_pid: int  # equal to one's own pid: another PID namespace, the handle can't be opened
    canary: bytes  # the slab's first 64 bytes until the holder writes there
    descriptor: int | None  # None: a legacy CUDA handle
    cuda_ipc: bytes  # the 64 bytes of one; empty: a descriptor
    descriptor_kind: DescriptorKind = DescriptorKind.SHARED_MEMORY


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeNotice:
    """The daemon asks for leases back. Sent again after each re-attach until they are.

    Also when somebody else wants them sooner. Of several deadlines the earliest counts.
    """

    lender_gpu: str
    nbytes: int
    reason: str
    deadline: float  # time.monotonic; past it the slabs are quarantined
    lease_ids: tuple[str, ...]  # ones that the client does not know: acknowledge at once


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseUse:
    """What the client says of one lease that it knows. Trusted for order only."""

    lease_id: str
    used_bytes: int
    copy_bytes: int  # of these, what an evacuation would have to copy
    idle_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRoom:
    """Host memory held for `store` data: absolute, with a revision that only grows."""

    revision: int
    nbytes: int


class ReclaimOutcome(enum.StrEnum):
    """How a reclaim ended."""

    COMPLETE = "complete"  # all that was asked of the borrowers is free
    PARTIAL = "partial"  # some of it did not come back in time
    NOTHING_LENT = "nothing_lent"  # there was nothing to take back
    UNREACHABLE = "unreachable"  # the daemon did not answer; what it was asked may go on
    REFUSED = "refused"  # the daemon said no: nothing was asked of anybody


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimResult:
    """What came of asking for a GPU's memory back."""

    asked_bytes: int
    revoked_bytes: int  # whole slabs, so at least what was asked, where so much was lent
    freed_bytes: int  # freed to the driver
    quarantined_bytes: int  # did not come back in time
    seconds: float
    error: BrokerUnreachable | Refused | None = None  # why there is no answer; then no byte is told

    @property
    def complete(self) -> bool:
        """Whether all that was asked of the borrowers has been freed."""
        return self.error is None and self.freed_bytes >= self.revoked_bytes

    @property
    def outcome(self) -> ReclaimOutcome:
        """The same, named: "complete", "partial", "nothing_lent", "unreachable" or "refused"."""
        if self.error is not None:
            is_refused = isinstance(self.error, Refused)
            return ReclaimOutcome.REFUSED if is_refused else ReclaimOutcome.UNREACHABLE
        if not self.revoked_bytes:
            return ReclaimOutcome.NOTHING_LENT
        return ReclaimOutcome.COMPLETE if self.complete else ReclaimOutcome.PARTIAL


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimProgress:
    """How far a reclaim has come. `freed_bytes` only grows."""

    asked_bytes: int
    freed_bytes: int  # by how much less of the GPU is held for borrowers than at the beginning
    lent_bytes: int  # with borrowers, those asked back among them
    returning_bytes: int  # given back, being freed
    quarantined_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuBytes:
    """What of a GPU is held for borrowers now."""

    lent_bytes: int
    returning_bytes: int
    quarantined_bytes: int

    @property
    def held_bytes(self) -> int:
        """All of it: none is free."""
        return self.lent_bytes + self.returning_bytes + self.quarantined_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferResult:
    """How much of a GPU is offered, and how much is lent, now."""

    offered_bytes: int
    lent_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The daemon knows the session."""

    session_id: str
    token: bytes  # what every call carries; dies with the connection
    tenant: str
    term_seconds: float
    smallest_slab_bytes: int
    largest_slab_bytes: int
    daemon_version: str
    ended_lease_ids: tuple[str, ...]
    has_sentinel: bool  # one came with it
    takes_calls: bool = False  # as frames of this link
    takes_exchanges: bool = False  # of leases that it revoked for others


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The daemon does not take the session, or we can't take the daemon."""

    code: str  # a gRPC status name; empty: it is we
    message: str
    reason: str = "refused"  # or OTHER_PROTOCOL
    largest_bytes: int | None = None  # of a slab that may be had all the same; None: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasesEnded:
    """Of the leases named, these are not known: the answer to a keepalive."""

    lease_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DescriptorArrived:
    """The next descriptor is this lease's slab."""

    lease_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasesLost:
    """The slabs of these are gone."""

    lease_ids: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarting:
    """The daemon stops on purpose; another one is expected soon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unheard:
    """A frame of a kind that this release does not know: a newer daemon's, and no matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAnswer:
    """What became of a call that went out as a frame."""

    number: int  # of that call
    payload: bytes = b""
    refusal: Refusal | None = None  # instead of the payload


DaemonFrame = (
    Welcome
    | Refusal
    | LeasesEnded
    | RevokeNotice
    | DescriptorArrived
    | LeasesLost
    | Restarting
    | CallAnswer
    | Unheard
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """The reply to an acquire; *by_descriptor*: the grant's comes, or came, by the presence link."""

    grant: Grant
    by_descriptor: bool
