"""The ledger: who holds which bytes, with every sum kept as it changes.

Covers leases, sessions and their sums per GPU, per tenant and for the host. Records are replaced,
never edited, and each change of a record changes the sums it is part of, so that no question costs
more with more leases. It decides nothing: rules are in the modules above, the check that the sums
are right in `integrity`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aqua_daemon.core.accounts import (
    BACKED,
    HELD,
    RECALLED,
    RETURNABLE,
    GpuAccount,
    SessionAccount,
    TenantAccount,
    is_coming,
)
from aqua_daemon.core.errors import InvalidRequest, UnknownSession
from aqua_daemon.core.model import (
    DEAD,
    STORE,
    SUB_TENANT_MARK,
    GpuUuid,
    Lease,
    LeaseId,
    LeaseState,
    LeaseUse,
    Session,
    SessionId,
    TenantName,
    owner_of,
)

# Of what a slab is part, looked up once for each move; None: it is not in the books.
_PART_OF = {
    state: (state in HELD, state in BACKED, state in RETURNABLE, state in RECALLED)
    for state in (None, *LeaseState)
}


class Ledger:
    """The books of one node."""

    def __init__(self, gpus: tuple[GpuUuid, ...], *, drained: Iterable[GpuUuid] = ()) -> None:
        self.drained = set(drained)  # by admins; also GPUs that are not here now
        self.gpus: dict[GpuUuid, GpuAccount] = {gpu: self._new_account(gpu) for gpu in gpus}
        self.leases: dict[LeaseId, Lease] = {}
        # Beside the records, because each keepalive changes them for all that its session holds.
        self.named_at: dict[LeaseId, float] = {}  # when its client named it, or was granted it
        self.uses: dict[LeaseId, LeaseUse] = {}  # of those that were named
        self.sessions: dict[SessionId, Session] = {}
        self.session_accounts: dict[SessionId, SessionAccount] = {}
        self.tenants: dict[TenantName, TenantAccount] = {}
        self.owners: dict[TenantName, TenantAccount] = {}  # each with all its sub-tenants
        self.host_bytes = 0  # reserved for `store` data of all sessions

    def living_session(self, session_id: SessionId) -> Session:
        """The session, unless it has ended."""
        session = self.sessions.get(session_id)
        if session is None or session.state is DEAD:
            msg = f"session {session_id} is not known here or has ended: open a new one"
            raise UnknownSession(msg)
        return session

    def gpu_here(self, gpu: GpuUuid) -> GpuAccount:
        """The GPU that somebody names, unless it is none of this node's."""
        account = self.gpus.get(gpu)
        if account is None:
            msg = f"GPU {gpu} is not on this node; it has {', '.join(self.gpus) or 'none'}"
            raise InvalidRequest(msg)
        return account

    def leases_of(self, account: GpuAccount | SessionAccount) -> list[Lease]:
        """The slabs of a GPU, or of a session, in every state."""
        leases = self.leases
        return [leases[lease_id] for lease_id in account.leases]

    def owner(self, tenant: TenantName) -> TenantAccount:
        """What *tenant* and all that share its quota hold together; empty when that is nothing."""
        return self.owners.get(owner_of(tenant)) or TenantAccount()

    def quota_account(self, name: TenantName) -> TenantAccount:
        """What counts against the quota of *name*: a sub-tenant's own, a tenant's with all of it."""
        if SUB_TENANT_MARK in name:
            return self.tenants.get(name) or TenantAccount()
        return self.owner(name)

    def add_gpu(self, gpu: GpuUuid) -> GpuAccount:
        """The GPU's account, made when it is new."""
        return self.gpus.setdefault(gpu, self._new_account(gpu))

    def mark_drained(self, gpu: GpuUuid, *, is_drained: bool) -> None:
        """Note an admin's wish, which outlives the GPU's keepers, and its being here."""
        (self.drained.add if is_drained else self.drained.discard)(gpu)
        if gpu in self.gpus:
            self.gpus[gpu].is_drained = is_drained

    def _new_account(self, gpu: GpuUuid) -> GpuAccount:
        return GpuAccount(gpu=gpu, is_drained=gpu in self.drained)

    # Sessions

    def open_session(self, session: Session) -> SessionAccount:
        """Enter a session that holds no lease yet."""
        account = SessionAccount()
        self.sessions[session.session_id] = session
        self.session_accounts[session.session_id] = account
        for tenant in self._accounts(session.tenant):
            tenant.sessions += 1
        self._count_host(session.tenant, session.host_room.nbytes)
        return account

    def replace_session(self, session: Session) -> None:
        """Put *session* in the place of the record with its id."""
        before = self.sessions[session.session_id]
        self.sessions[session.session_id] = session
        if before.host_room.nbytes != session.host_room.nbytes:
            self._count_host(session.tenant, session.host_room.nbytes - before.host_room.nbytes)

    def close_session(self, session_id: SessionId) -> Session:
        """Strike a session that holds no lease any more."""
        session = self.sessions.pop(session_id)
        del self.session_accounts[session_id]
        self._count_host(session.tenant, -session.host_room.nbytes)
        for tenant in self._accounts(session.tenant):
            tenant.sessions -= 1
        self._drop_idle_tenant(session.tenant)
        for gpu in self.gpus.values():
            gpu.forget(session_id)
        return session

    # Leases

    def enter(self, lease: Lease) -> None:
        """Enter a lease that is not in the books."""
        self.leases[lease.lease_id] = lease
        self.named_at[lease.lease_id] = lease.since
        gpu = self.gpus[lease.lender]
        gpu.leases[lease.lease_id] = None
        gpu.borrowers[lease.borrower] = gpu.borrowers.get(lease.borrower, 0) + 1
        account = self.session_accounts[lease.session_id]
        account.leases[lease.lease_id] = None
        account.leases_on[lease.lender] = account.leases_on.get(lease.lender, 0) + 1
        self._count(lease, None, lease.state)
        self._count_coming(lease, was=False, is_now=is_coming(lease))

    def replace(self, lease: Lease) -> None:
        """Put *lease* in the place of the record with its id: its state and revoke may differ."""
        before = self.leases[lease.lease_id]
        self.leases[lease.lease_id] = lease
        if before.state is not lease.state:
            self._count(lease, before.state, lease.state)
        self._count_coming(lease, was=is_coming(before), is_now=is_coming(lease))

    def name(self, uses: Mapping[LeaseId, LeaseUse], *, at: float) -> None:
        """Note that a client named leases that it holds, and what it said of them."""
        self.uses.update(uses)
        self.named_at.update(dict.fromkeys(uses, at))

    def strike(self, lease_id: LeaseId) -> None:
        """Take a lease out of the books."""
        lease = self.leases.pop(lease_id)
        del self.named_at[lease_id]
        self.uses.pop(lease_id, None)
        self._count(lease, lease.state, None)
        self._count_coming(lease, was=is_coming(lease), is_now=False)
        gpu = self.gpus[lease.lender]
        del gpu.leases[lease_id]
        gpu.borrowers[lease.borrower] -= 1
        if not gpu.borrowers[lease.borrower]:
            del gpu.borrowers[lease.borrower]
        account = self.session_accounts[lease.session_id]
        del account.leases[lease_id]
        account.leases_on[lease.lender] -= 1
        if not account.leases_on[lease.lender]:
            del account.leases_on[lease.lender]
        self._drop_idle_tenant(lease.tenant)

    def _count(self, lease: Lease, before: LeaseState | None, after: LeaseState | None) -> None:
        nbytes = lease.nbytes
        gpu = self.gpus[lease.lender]
        if before is not None:
            gpu.bytes_in[before] -= nbytes
        if after is not None:
            gpu.bytes_in[after] += nbytes
        was_held, was_backed, was_returnable, was_recalled = _PART_OF[before]
        is_held, is_backed, is_returnable, is_recalled = _PART_OF[after]
        if is_held is not was_held:
            sign = 1 if is_held else -1
            gpu.held_bytes += sign * nbytes
            for tenant in self._accounts(lease.tenant):
                tenant.held_bytes += sign * nbytes
                tenant.leases += sign
        account = self.session_accounts[lease.session_id]
        if is_backed is not was_backed and lease.safety_class is STORE:
            signed_bytes = nbytes if is_backed else -nbytes
            account.backed_bytes += signed_bytes
            self._count_host(lease.tenant, signed_bytes)
        if is_returnable and not was_returnable:
            account.returnable[lease.lease_id] = None
        elif was_returnable and not is_returnable:
            del account.returnable[lease.lease_id]
        if is_recalled and not was_recalled:
            account.recalled[lease.lease_id] = None
        elif was_recalled and not is_recalled:
            del account.recalled[lease.lease_id]

    def _count_coming(self, lease: Lease, *, was: bool, is_now: bool) -> None:
        if was == is_now:
            return
        signed_bytes = lease.nbytes if is_now else -lease.nbytes
        self.gpus[lease.lender].coming_bytes += signed_bytes
        for tenant in self._accounts(lease.tenant):
            tenant.coming_bytes += signed_bytes

    def _count_host(self, tenant: TenantName, nbytes: int) -> None:
        for account in self._accounts(tenant):
            account.host_bytes += nbytes
        self.host_bytes += nbytes

    def _accounts(self, tenant: TenantName) -> tuple[TenantAccount, TenantAccount]:
        account = self.tenants.get(tenant)
        if account is None:
            account = self.tenants[tenant] = TenantAccount()
        name = owner_of(tenant)
        owner = self.owners.get(name)
        if owner is None:
            owner = self.owners[name] = TenantAccount()
        return account, owner

    def _drop_idle_tenant(self, tenant: TenantName) -> None:
        for name, accounts in ((tenant, self.tenants), (owner_of(tenant), self.owners)):
            account = accounts[name]
            if not (account.sessions or account.held_bytes or account.host_bytes):
                del accounts[name]
