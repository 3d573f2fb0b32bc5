"""What the outside world must now do, in the imperative. `Instruction` is their union.

Orders go to keepers and sessions; answers go to whoever waits for the request id; `NoteMove` is
for the journal and the counters alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from aqua_daemon.core.errors import BrokerError
from aqua_daemon.core.limits import Quota, QuotaOutcome
from aqua_daemon.core.link_figures import LinkOutcome
from aqua_daemon.core.model import (
    GpuPair,
    GpuUuid,
    HostRoom,
    Lease,
    LeaseId,
    LeaseState,
    ProcessIdentity,
    RebalanceBlock,
    RequestId,
    Revocation,
    RevokeReason,
    SessionId,
    SlabTag,
    TenantName,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocateSlab:
    """Make, scrub and tag a slab. Ends in SlabAllocated or SlabAllocationFailed."""

    tag: SlabTag


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeSlab:
    """Scrub a slab and free it to the driver. Ends in SlabFreed."""

    gpu: GpuUuid
    lease_id: LeaseId


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeLink:
    """Measure a link with memory of the keepers' own. Ends in LinkProbed."""

    request_id: RequestId
    pair: GpuPair
    sizes: tuple[int, ...]  # of the copies, rising
    has_company: bool  # others are measured at the same time: what counts is the mean beside them


@dataclass(frozen=True, slots=True, kw_only=True)
class SendRevoke:
    """Ask a session for leases back. Ends in RevokeAcknowledged, or in quarantine at `deadline`."""

    session_id: SessionId
    gpu: GpuUuid
    nbytes: int
    reason: RevokeReason
    deadline: float  # the time that `handle` was given, plus what the client has
    lease_ids: tuple[LeaseId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TellLost:
    """Tell a session that leases are lost. Ends in LossTold."""

    session_id: SessionId
    lease_ids: tuple[LeaseId, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetSession:
    """The session is over and holds nothing: close what belongs to it."""

    session_id: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteBrokenInvariant:
    """The books were found wrong: nothing is to be done but to tell people."""

    rule: str
    message: str
    gpu: GpuUuid | None
    lease_id: LeaseId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerGranted:
    """The lease is there."""

    session_id: SessionId
    request_id: RequestId
    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDenied:
    """A request that was pending has failed."""

    session_id: SessionId
    request_id: RequestId
    error: BrokerError


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerReturned:
    """What a release or an acknowledgement did, lease by lease."""

    session_id: SessionId
    request_id: RequestId
    returned: tuple[LeaseId, ...]
    unknown: tuple[LeaseId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerExchange:
    """Some leases stay after all; others are to come instead, as their revoke says."""

    session_id: SessionId
    request_id: RequestId
    gpu: GpuUuid
    spared: tuple[LeaseId, ...]
    revoked: tuple[LeaseId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerKeepalive:
    """Which of the leases that the client named are not its own (any more), or not known yet."""

    session_id: SessionId
    request_id: RequestId
    ended: tuple[LeaseId, ...]
    unheard: tuple[LeaseId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHostRoom:
    """The host room that is in force now."""

    session_id: SessionId
    request_id: RequestId
    host_room: HostRoom


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOffer:
    """The offer that is in force now, and what of it is lent."""

    session_id: SessionId
    request_id: RequestId
    offered_bytes: int
    lent_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerReclaim:
    """How a reclaim ended: whole, or partly because its deadline came."""

    session_id: SessionId
    request_id: RequestId
    asked_bytes: int
    revoked_bytes: int
    freed_bytes: int
    quarantined_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerQuota:
    """What came of setting a quota, and the quota that is in force now."""

    session_id: SessionId
    request_id: RequestId
    tenant: TenantName
    outcome: QuotaOutcome
    quota: Quota


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerQuiesce:
    """How long the GPU will be left alone for this session."""

    session_id: SessionId
    request_id: RequestId
    gpu: GpuUuid
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainHit:
    """What one session holds of a GPU that is drained."""

    gpu: GpuUuid
    session_id: SessionId
    tenant: TenantName
    pid: int
    leases: int
    nbytes: int
    copy_bytes: int  # what it has to copy elsewhere, as it said last
    quarantined_bytes: int  # of `nbytes`: did not come back when they were asked for before


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDrain:
    """Who is hit, or would be, and how long it takes."""

    session_id: SessionId
    request_id: RequestId
    gpus: tuple[GpuUuid, ...]
    hits: tuple[DrainHit, ...]
    deadline_seconds: float  # until the last of them is late; 0: nothing is to come back
    copy_seconds: float  # of all that is to be copied, over the way to host memory
    is_dry_run: bool  # nothing has changed


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerUndrain:
    """Which GPUs were drained until now."""

    session_id: SessionId
    request_id: RequestId
    gpus: tuple[GpuUuid, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLinkProbe:
    """What each link was measured as, in the order asked."""

    session_id: SessionId
    request_id: RequestId
    outcomes: tuple[LinkOutcome, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteRebalance:
    """Memory was asked back from one tenant for another; or why it was not."""

    tenant: TenantName
    for_tenant: TenantName
    nbytes: int  # asked back
    reason: str
    block: RebalanceBlock | None  # None: something was


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteTrouble:
    """A GPU lends nothing because something is wrong there, or nothing is any more."""

    gpu: GpuUuid
    trouble: str  # empty: it is well again


# Not frozen: each move makes one, and a frozen one takes three times as long to make.
@dataclass(slots=True, kw_only=True)
class NoteMove:
    """A lease has moved: the line of its story, and what counters and histograms are made from."""

    before: LeaseState | None  # None: it is new
    after: LeaseState | None  # None: it is gone
    lease: Lease  # as it is after the move (as it was, when gone)
    seconds: float  # how long it was in `before`
    why: str
    holder: ProcessIdentity | None = None  # whose the lease is; None: its session is not known
    spared: Revocation | None = None  # the revoke under which it need not come any more


Answer = (
    AnswerGranted
    | AnswerDenied
    | AnswerReturned
    | AnswerExchange
    | AnswerKeepalive
    | AnswerHostRoom
    | AnswerOffer
    | AnswerReclaim
    | AnswerQuota
    | AnswerQuiesce
    | AnswerDrain
    | AnswerUndrain
    | AnswerLinkProbe
)
Instruction = (
    AllocateSlab
    | FreeSlab
    | ProbeLink
    | SendRevoke
    | TellLost
    | ForgetSession
    | NoteMove
    | NoteRebalance
    | NoteTrouble
    | NoteBrokenInvariant
    | Answer
)
