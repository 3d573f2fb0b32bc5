"""What the broker remembers: all that outlives an event."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from aqua_daemon.core.deadlines import Deadlines
from aqua_daemon.core.ledger import Ledger
from aqua_daemon.core.limits import Limits, Quota
from aqua_daemon.core.link_figures import LinkOutcome
from aqua_daemon.core.model import (
    BrokerSettings,
    GpuPair,
    GpuUuid,
    LeaseId,
    ProcessIdentity,
    RequestId,
    Session,
    SessionId,
    SlabTag,
    TenantName,
    owner_of,
)
from aqua_daemon.core.scores import LinkScores
from aqua_daemon.core.sizes import REMEMBERED_ENDED

_NO_LIMITS = Limits(nbytes=2**62, leases=2**62, sessions=2**62)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaim:
    """A producer's request for its memory that has not been answered yet."""

    session_id: SessionId
    request_id: RequestId
    gpu: GpuUuid
    asked_bytes: int
    revoked_bytes: int
    freed_bytes: int
    outstanding: frozenset[LeaseId]  # what it waits for
    started_at: float
    ends_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What a session could not get."""

    nbytes: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """An admin's request to measure links that has not been answered yet."""

    session_id: SessionId
    request_id: RequestId
    pairs: tuple[GpuPair, ...]
    outcomes: dict[GpuPair, LinkOutcome]  # of those that have ended
    ends_at: float


@dataclass(slots=True, kw_only=True)
class Books:
    """All that the broker knows."""

    settings: BrokerSettings
    ledger: Ledger
    started_at: float
    is_restarting: bool = True
    ticked_at: float | None = None
    awaited: set[SessionId] = field(default_factory=set)  # adopted, and not seen since
    ended: dict[str, None] = field(default_factory=dict)  # ids that may not come back
    over: dict[SessionId, ProcessIdentity] = field(default_factory=dict)  # left, or proved gone
    unseen: dict[LeaseId, None] = field(default_factory=dict)  # ended before anybody had a handle
    lease_timers: Deadlines[LeaseId] = field(default_factory=Deadlines)
    session_timers: Deadlines[SessionId] = field(default_factory=Deadlines)
    reclaim_timers: Deadlines[RequestId] = field(default_factory=Deadlines)
    reclaims: list[Reclaim] = field(default_factory=list)
    wants: dict[SessionId, Want] = field(default_factory=dict)
    shares: dict[TenantName, int] | None = None  # None: to be worked out when asked for
    rebalanced_at: float = -math.inf
    quotas: dict[TenantName, Quota] = field(default_factory=dict)  # those that were ever set
    scores: LinkScores = field(default_factory=LinkScores)
    probe: Probe | None = None  # under way
    default_limits: Limits = field(init=False)
    violations: int = 0
    known_faults: set[tuple[str, GpuUuid | None, LeaseId | None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.default_limits = Limits(
            nbytes=self.settings.tenant_quota_bytes,
            leases=self.settings.tenant_quota_leases,
            sessions=self.settings.tenant_quota_sessions,
        )

    @property
    def grace_ends_at(self) -> float:
        """When a new broker stops waiting for keepers and for the holders of adopted slabs."""
        return self.started_at + self.settings.restart_grace_seconds

    @property
    def has_heard_all(self) -> bool:
        """Whether each keeper of the node has told what it holds."""
        return all(self.ledger.gpus[gpu].was_heard for gpu in self.settings.gpus)

    def limits_over(self, tenant: TenantName) -> Iterator[tuple[TenantName, Limits]]:
        """Whose quotas count what *tenant* holds, and how much: its tenant's, and its own."""
        owner = owner_of(tenant)
        quota = self.quotas.get(owner)
        yield owner, self.default_limits if quota is None else quota.over(self.default_limits)
        if tenant != owner and tenant in self.quotas:
            yield tenant, self.quotas[tenant].over(_NO_LIMITS)

    def weight_of(self, tenant: TenantName) -> float:
        """How much of what is short it gets, beside others of weight 1."""
        quota = self.quotas.get(tenant)
        return 1.0 if quota is None or quota.weight is None else quota.weight

    def priority_of(self, tenant: TenantName) -> int:
        """Its own, or its tenant's; who has less is asked first."""
        for name in (tenant, owner_of(tenant)):
            quota = self.quotas.get(name)
            if quota is not None and quota.priority is not None:
                return quota.priority
        return 0

    def excuse(self, tenant: TenantName) -> None:
        """What *tenant* holds now may stay, whatever the quotas over it are."""
        for name, _limits in self.limits_over(tenant):
            self.ledger.quota_account(name).excuse()

    def remember_ended(self, ended_id: str) -> None:
        """Keep an id from coming back."""
        self.ended[ended_id] = None
        if len(self.ended) > REMEMBERED_ENDED:
            del self.ended[next(iter(self.ended))]

    def remember_over(self, session: Session) -> None:
        """Note that nobody can touch what a session held, should a keeper turn out to hold it."""
        self.over[session.session_id] = session.process
        if len(self.over) > REMEMBERED_ENDED:
            del self.over[next(iter(self.over))]

    def is_over(self, tag: SlabTag) -> bool:
        """Whether the holder of a slab left or was proved gone: the process, not only the id."""
        return self.over.get(tag.session_id) == tag.holder

    def remember_unseen(self, lease_id: LeaseId) -> None:
        """Note that nobody can hold the lease, should a keeper turn out to have made its slab."""
        self.unseen[lease_id] = None
        if len(self.unseen) > REMEMBERED_ENDED:
            del self.unseen[next(iter(self.unseen))]
