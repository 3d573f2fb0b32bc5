"""The running sums of one GPU, one tenant, one session.

These are the only mutable things of the books, and only `ledger` changes their sums. Records
(leases, sessions) are frozen and live in `model`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from aqua_daemon.core.instructions import Answer
from aqua_daemon.core.model import (
    ALLOCATING,
    AUTO,
    FREEING,
    LEASED,
    LOST,
    NEVER,
    OFFERED,
    QUARANTINED,
    RETURNED,
    REVOKING,
    STORE,
    GpuLink,
    GpuReport,
    GpuUuid,
    Lease,
    LeaseId,
    LeaseState,
    LendingPolicy,
    RequestId,
    SessionId,
)
from aqua_daemon.core.sizes import GRANT_RESERVE_FACTOR, reserve_bytes

# A `store` slab in one of these states has host room behind it, to be evacuated into.
BACKED = frozenset({ALLOCATING, LEASED, REVOKING, QUARANTINED})
RECALLED = frozenset({REVOKING, QUARANTINED})
RETURNABLE = RECALLED | {LEASED}  # its holder has it, and may give it back
HELD = frozenset(LeaseState) - {LOST}
COMING = frozenset({REVOKING, RETURNED, FREEING})


def is_coming(lease: Lease) -> bool:
    """Whether the bytes are on their way back to the driver, or will be when they arrive."""
    return lease.state in COMING or (lease.state is ALLOCATING and lease.revocation is not None)


def has_host_room(lease: Lease) -> bool:
    """Whether host room is reserved for what the slab holds."""
    return lease.safety_class is STORE and lease.state in BACKED


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """A session's wish that a GPU be left alone."""

    started_at: float
    ends_at: float
    takes_back: bool = False  # all that was lent there goes back first


@dataclass(frozen=True, slots=True, kw_only=True)
class Newcomer:
    """A process that has come to a GPU: what was lent there goes back, then it is left alone."""

    since: float
    changed_at: float  # when what the GPU's processes use last changed
    is_alone: bool = False  # all that was lent there has gone back, or is quarantined


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """How much may be lent on a GPU that has just begun to lend."""

    opened_at: float | None  # None: it does not lend yet
    most_bytes: int  # held there, with what is granted


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """Nothing is lent where keepers keep ending."""

    ends_at: float
    seconds: float
    keepers: int  # that have ended within an hour

    @property
    def why(self) -> str:
        """As people read it."""
        return (
            f"{self.keepers} of its keepers have ended within an hour: it lends nothing for "
            f"{self.seconds:.0f} s, or until aquactl undrain"
        )


@dataclass(slots=True, kw_only=True)
class GpuAccount:
    """One GPU: what its keeper said last, and the sums of its slabs."""

    gpu: GpuUuid
    has_keeper: bool = False
    was_heard: bool = False
    trouble: str = "its keeper has not been heard"  # of the link to the keeper
    refusal: str = ""  # of its keeper to have it lent
    doubt: str = ""  # what invariant did not hold there
    total_bytes: int | None = None  # None: not known, which is not 0
    reserve_bytes: int = 0
    owner_bytes: dict[int, int] = field(default_factory=dict)
    others_bytes: int = 0  # used by anything but slabs
    warnings: tuple[str, ...] = ()
    model: str = ""
    links: dict[GpuUuid, GpuLink] = field(default_factory=dict)
    borrowers: dict[GpuUuid | None, int] = field(default_factory=dict)  # leases by home GPU
    bytes_in: dict[LeaseState, int] = field(
        default_factory=lambda: dict.fromkeys(LeaseState, 0),
    )
    held_bytes: int = 0  # every slab but the lost ones
    coming_bytes: int = 0
    leases: dict[LeaseId, None] = field(default_factory=dict)
    keeper_slabs: dict[LeaseId, int] = field(default_factory=dict)  # its report, and answers since
    strange_slabs: dict[LeaseId, int] = field(default_factory=dict)  # reported, not in the books
    strange_bytes: int = 0
    limits: dict[SessionId, int] = field(default_factory=dict)
    offers: dict[SessionId, None] = field(default_factory=dict)  # whose limit is not a reclaim's
    quiets: dict[SessionId, Quiet] = field(default_factory=dict)
    is_drained: bool = False  # an admin wants nothing lent there
    policy: LendingPolicy = AUTO
    past_uses: deque[tuple[float, int]] = field(default_factory=deque)  # until when, falling bytes
    unsettled_bytes: int = 0  # free, but used a moment ago
    outgrown: dict[int, int] = field(
        default_factory=dict
    )  # by pid: by more than the reserve at once
    newcomer: Newcomer | None = None
    ramp: Ramp | None = None  # None: it lends all that it may
    told_trouble: str = ""  # what was told of it last
    keeper_ends: tuple[float, ...] = ()  # when, within the last hour
    rest: Rest | None = None  # after too many of them
    probe_bytes: int = 0  # promised to a measurement of its links, while that lasts
    has_postponed: bool = False  # slabs are RETURNED that are to be freed when it is quiet no more

    @property
    def free_bytes(self) -> int:
        """Bytes that nobody holds; below 0 when the GPU is overdrawn, 0 when nothing is known."""
        if self.total_bytes is None:
            return 0
        return self.total_bytes - self.others_bytes - self.held_bytes - self.strange_bytes

    @property
    def above_reserve_bytes(self) -> int:
        """What is free beside the reserve as new uses of it have to leave it; may be below 0."""
        return self.free_bytes - math.ceil(GRANT_RESERVE_FACTOR * self.reserve_bytes)

    @property
    def limit_bytes(self) -> int | None:
        """The lowest limit that a producer has set."""
        return min(self.limits.values()) if self.limits else None

    @property
    def lendable_bytes(self) -> int:
        """What may be granted here now."""
        if self.no_grants_because or self.waits_for:
            return 0
        room = self.above_reserve_bytes
        room -= self.unsettled_bytes + self.probe_bytes
        if self.limits:
            room = min(room, min(self.limits.values()) - self.held_bytes)
        if self.ramp is not None:
            room = min(room, self.ramp.most_bytes - self.held_bytes)
        return max(0, room)

    @property
    def quiet_until(self) -> float | None:
        """When the last session that wants it quiet will have had enough; None: it is not."""
        return max((quiet.ends_at for quiet in self.quiets.values()), default=None)

    @property
    def is_quiet(self) -> bool:
        """Whether the broker neither grows nor shrinks there now."""
        return bool(self.quiets) or (self.newcomer is not None and self.newcomer.is_alone)

    @property
    def is_taken_back(self) -> bool:
        """Whether it is quiet for somebody who waits for whatever comes back."""
        return any(quiet.takes_back for quiet in self.quiets.values())

    @property
    def waits_for(self) -> str:
        """Why nothing is granted although nothing is wrong; else empty."""
        if self.is_drained:
            return "it is drained: aquactl undrain GPU"
        if self.quiets:
            return "it is quiesced"
        if self.newcomer is not None:
            return "a new process settles there"
        if self.policy is NEVER:
            return "its lending policy is `never`"
        if self.policy is OFFERED and not self.offers:
            return "its lending policy is `offered`, and nobody has offered any of it"
        return ""

    @property
    def no_grants_because(self) -> str:
        """Why nothing is granted here; else empty."""
        return self.trouble or self.refusal or self.doubt or (self.rest.why if self.rest else "")

    def forget(self, session_id: SessionId) -> None:
        """What a session that has ended wished is nobody's wish any more."""
        self.limits.pop(session_id, None)
        self.offers.pop(session_id, None)
        self.quiets.pop(session_id, None)

    def learn(self, said: GpuReport) -> None:
        """Take over what a keeper's probe found. A failed probe says nothing: the last one stays."""
        others_bytes = said.other_bytes
        if others_bytes is None:
            others_bytes = sum(said.owner_bytes.values())
        if said.total_bytes <= 0 or min(others_bytes, *said.owner_bytes.values(), 0) < 0:
            self.trouble = said.not_lending or "its last report could not be read"
            return
        self.trouble = ""
        self.refusal = said.not_lending
        self.warnings = said.warnings
        self.model = said.model
        self.links = {link.peer: link for link in said.links}
        self.total_bytes = said.total_bytes
        self.reserve_bytes = reserve_bytes(said.total_bytes)
        self.owner_bytes = dict(said.owner_bytes)
        self.others_bytes = others_bytes


@dataclass(slots=True, kw_only=True)
class TenantAccount:
    """The sums of one tenant, or of a tenant with all its sub-tenants, over GPUs and sessions."""

    held_bytes: int = 0
    coming_bytes: int = 0  # of what it holds, on its way back
    host_bytes: int = 0
    leases: int = 0  # every one but the lost
    sessions: int = 0
    # What it held when adopted, or when a quota was set: may be over it.
    excused_bytes: int = 0
    excused_leases: int = 0
    excused_sessions: int = 0

    def excuse(self) -> None:
        """What is held now may stay, whatever the quota is."""
        self.excused_bytes = self.held_bytes
        self.excused_leases = self.leases
        self.excused_sessions = self.sessions


@dataclass(slots=True, kw_only=True)
class SessionAccount:
    """What belongs to one session beside its record."""

    backed_bytes: int = 0  # host room behind its `store` slabs
    leases: dict[LeaseId, None] = field(default_factory=dict)
    returnable: dict[LeaseId, None] = field(default_factory=dict)  # those that the client has
    recalled: dict[LeaseId, None] = field(default_factory=dict)  # revoking or quarantined
    leases_on: dict[GpuUuid, int] = field(default_factory=dict)
    answers: dict[RequestId, LeaseId | Answer | None] = field(default_factory=dict)
    timer_at: float | None = None  # when its term is looked at next
