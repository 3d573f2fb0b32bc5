"""The books as others read them: status, metrics, policies. Figures only, nothing is decided."""

from __future__ import annotations

from aqua_daemon.core.accounts import GpuAccount
from aqua_daemon.core.books import Books
from aqua_daemon.core.lending import outgrown
from aqua_daemon.core.limits import UNSET
from aqua_daemon.core.model import LeaseState, TenantName, owner_of
from aqua_daemon.core.node_snapshot import GpuSnapshot, NodeSnapshot, QuotaSnapshot, TenantSnapshot


def snapshot(books: Books, now: float) -> NodeSnapshot:
    """Everything, at one moment."""
    ledger = books.ledger
    return NodeSnapshot(
        now=now,
        gpus=tuple(_gpu(books, account, now) for account in ledger.gpus.values()),
        leases=tuple(ledger.leases.values()),
        sessions=tuple(ledger.sessions.values()),
        tenants=tuple(_tenant(books, tenant) for tenant in ledger.tenants),
        host_pool_bytes=books.settings.host_pool_bytes,
        host_reserved_bytes=ledger.host_bytes,
        restarting=books.is_restarting,
        invariant_violations=books.violations,
        drained=tuple(sorted(ledger.drained)),
        named_at=dict(ledger.named_at),
        uses=dict(ledger.uses),
        links=books.scores.snapshot(),
        quotas=tuple(_quota(books, tenant) for tenant in {**ledger.owners, **books.quotas}),
    )


def _gpu(books: Books, account: GpuAccount, now: float) -> GpuSnapshot:
    held = account.bytes_in
    total_bytes = account.total_bytes or 0
    # Without its keeper the last report is history: slabs are known, the rest may be anything.
    is_known = account.has_keeper
    unknown_bytes = total_bytes - account.held_bytes - account.strange_bytes
    return GpuSnapshot(
        gpu=account.gpu,
        total_bytes=total_bytes,
        used_by_others_bytes=account.others_bytes if is_known else 0,
        lent_bytes=held[LeaseState.ALLOCATING]
        + held[LeaseState.LEASED]
        + held[LeaseState.REVOKING],
        # A slab that the books do not know is nobody's, and never free.
        quarantined_bytes=held[LeaseState.QUARANTINED] + account.strange_bytes,
        returning_bytes=held[LeaseState.RETURNED] + held[LeaseState.FREEING],
        free_bytes=max(0, account.free_bytes) if is_known else 0,
        unknown_bytes=0 if is_known else max(0, unknown_bytes),
        reserve_bytes=account.reserve_bytes,
        lendable_bytes=account.lendable_bytes,
        lend_limit_bytes=account.limit_bytes,
        trouble=account.no_grants_because,
        warnings=account.warnings + outgrown(account) + books.scores.slowness(account.gpu),
        model=account.model,
        quiet_seconds=max(0.0, (account.quiet_until or now) - now),
        lending=account.policy,
        waits_for=account.waits_for,
        is_drained=account.is_drained,
    )


def _tenant(books: Books, tenant: TenantName) -> TenantSnapshot:
    account = books.ledger.tenants[tenant]
    return TenantSnapshot(
        tenant=tenant,
        leased_bytes=account.held_bytes,
        quota_bytes=min(limits.nbytes for _, limits in books.limits_over(tenant)),
        host_reserved_bytes=account.host_bytes,
        sessions=account.sessions,
    )


def _quota(books: Books, tenant: TenantName) -> QuotaSnapshot:
    found = books.quotas.get(tenant, UNSET)
    limits = next(limits for _, limits in books.limits_over(tenant))  # of the owner of a sub-tenant
    if tenant != owner_of(tenant):
        limits = found.over(limits)
    account = books.ledger.quota_account(tenant)
    return QuotaSnapshot(
        tenant=tenant,
        nbytes=limits.nbytes,
        is_default=found.nbytes is None,
        revision=found.revision,
        held_bytes=account.held_bytes,
        leases=limits.leases,
        leases_are_default=found.leases is None,
        held_leases=account.leases,
        sessions=limits.sessions,
        sessions_are_default=found.sessions is None,
        held_sessions=account.sessions,
        weight=books.weight_of(tenant),
        weight_is_default=found.weight is None,
        priority=books.priority_of(tenant),
        priority_is_default=found.priority is None,
    )
