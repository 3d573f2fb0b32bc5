"""The books' figures at one moment, as others read them: status, metrics, policies, files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aqua_daemon.core.model import (
    GpuPair,
    GpuUuid,
    Lease,
    LeaseId,
    LeaseUse,
    LendingPolicy,
    LinkRate,
    Session,
    TenantName,
)
from aqua_daemon.core.sizes import MOST_TENANT_LEASES, MOST_TENANT_SESSIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSnapshot:
    """A link's part of the books: what it was measured as last."""

    pair: GpuPair
    rate: LinkRate
    slow: str = ""  # by how much, where others lend first because of it; else empty


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSnapshot:
    """One GPU's part of the books.

    What is used, lent, quarantined, returning, free and unknown sums to `total_bytes`, unless the
    GPU is overdrawn. Without its keeper nothing is known but the slabs.
    """

    gpu: GpuUuid
    total_bytes: int
    used_by_others_bytes: int
    lent_bytes: int  # allocating, leased and revoking
    quarantined_bytes: int
    returning_bytes: int  # returned and freeing
    free_bytes: int
    reserve_bytes: int
    lendable_bytes: int
    lend_limit_bytes: int | None  # set by a producer's offer or reclaim; None: no limit
    trouble: str  # why nothing is granted there; else empty
    unknown_bytes: int = 0  # the keeper's last word on them is too old to be repeated
    warnings: tuple[str, ...] = ()
    model: str = ""
    quiet_seconds: float = 0.0  # for so long it is left alone
    lending: LendingPolicy = LendingPolicy.AUTO
    waits_for: str = ""  # why nothing is granted there although nothing is wrong; else empty
    is_drained: bool = False  # an admin wants nothing lent there


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSnapshot:
    """One tenant's part of the books."""

    tenant: TenantName
    leased_bytes: int  # every slab of its in any state but LOST
    quota_bytes: int
    host_reserved_bytes: int
    sessions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaSnapshot:
    """One tenant's quota, and what counts against it: for a tenant, with all its sub-tenants."""

    tenant: TenantName
    nbytes: int  # in force
    is_default: bool
    revision: int
    held_bytes: int
    leases: int = MOST_TENANT_LEASES
    leases_are_default: bool = True
    held_leases: int = 0
    sessions: int = MOST_TENANT_SESSIONS
    sessions_are_default: bool = True
    held_sessions: int = 0
    weight: float = 1.0
    weight_is_default: bool = True
    priority: int = 0
    priority_is_default: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSnapshot:
    """The books as they are at one moment."""

    now: float
    gpus: tuple[GpuSnapshot, ...]
    leases: tuple[Lease, ...]
    sessions: tuple[Session, ...]
    tenants: tuple[TenantSnapshot, ...]
    host_pool_bytes: int
    host_reserved_bytes: int
    restarting: bool
    invariant_violations: int
    quotas: tuple[QuotaSnapshot, ...] = ()  # of every tenant that is there or has one set
    links: tuple[LinkSnapshot, ...] = ()  # that were measured
    drained: tuple[GpuUuid, ...] = ()  # by admins; also GPUs that are not here now
    named_at: Mapping[LeaseId, float] = field(default_factory=dict)  # as the ledger has it
    uses: Mapping[LeaseId, LeaseUse] = field(default_factory=dict)
