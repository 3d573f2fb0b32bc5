"""Every sum of the books, counted again from the records that it is made of.

Covers only sums: what is wrong with one record alone is `integrity`. Records are frozen, so all of
them at one moment are a copy of references, and counting them may take its time while the books go
on: what is counted is compared with what the accounts said at that moment.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from aqua_daemon.core.accounts import (
    RETURNABLE,
    TenantAccount,
    has_host_room,
    is_coming,
)
from aqua_daemon.core.integrity import Violation
from aqua_daemon.core.ledger import Ledger
from aqua_daemon.core.model import (
    LOST,
    GpuUuid,
    Lease,
    LeaseState,
    Session,
    SessionId,
    TenantName,
    owner_of,
)

_NOTHING = dict.fromkeys(LeaseState, 0)


@dataclass(slots=True, kw_only=True)
class _OfGpu:
    leases: int = 0
    coming_bytes: int = 0
    borrowers: dict[GpuUuid | None, int] = field(default_factory=dict)
    bytes_in: dict[LeaseState, int] = field(default_factory=_NOTHING.copy)


@dataclass(slots=True, kw_only=True)
class _OfTenant:
    held_bytes: int = 0
    coming_bytes: int = 0
    host_bytes: int = 0
    leases: int = 0
    sessions: int = 0

    def add(self, part: _OfTenant) -> None:
        self.leases += part.leases
        self.held_bytes += part.held_bytes
        self.coming_bytes += part.coming_bytes
        self.host_bytes += part.host_bytes
        self.sessions += part.sessions


@dataclass(slots=True, kw_only=True)
class _OfSession:
    leases: int = 0
    leases_on_gpus: int = 0
    returnable: int = 0
    backed_bytes: int = 0


class Recount:
    """Count each of `leases` and `sessions` once, then look at the `differences`."""

    def __init__(self, ledger: Ledger) -> None:
        """Remember the records and the sums as they are now."""
        self.leases = tuple(ledger.leases.values())
        self.sessions = tuple(ledger.sessions.values())
        self._said_of_gpus = {
            gpu: _OfGpu(
                leases=len(account.leases),
                coming_bytes=account.coming_bytes,
                borrowers=dict(account.borrowers),
                bytes_in=dict(account.bytes_in),
            )
            for gpu, account in ledger.gpus.items()
        }
        self._said_of_tenants = _said(ledger.tenants)
        self._said_of_owners = _said(ledger.owners)
        self._said_of_sessions = {
            session_id: _OfSession(
                leases=len(account.leases),
                leases_on_gpus=sum(account.leases_on.values()),
                returnable=len(account.returnable),
                backed_bytes=account.backed_bytes,
            )
            for session_id, account in ledger.session_accounts.items()
            # Most sessions of a quiet node hold nothing: what is not said is nothing.
            if account.leases or account.leases_on or account.returnable or account.backed_bytes
        }
        self._said_host_bytes = ledger.host_bytes
        self._said_named = len(ledger.named_at)
        self._gpus: defaultdict[GpuUuid, _OfGpu] = defaultdict(_OfGpu)
        self._tenants: defaultdict[TenantName, _OfTenant] = defaultdict(_OfTenant)
        self._of_sessions: defaultdict[SessionId, _OfSession] = defaultdict(_OfSession)

    def count_lease(self, lease: Lease) -> None:
        """Add a lease to all that it is part of."""
        nbytes = lease.nbytes
        gpu = self._gpus[lease.lender]
        gpu.leases += 1
        gpu.borrowers[lease.borrower] = gpu.borrowers.get(lease.borrower, 0) + 1
        gpu.bytes_in[lease.state] += nbytes
        tenant = self._tenants[lease.tenant]
        if is_coming(lease):
            gpu.coming_bytes += nbytes
            tenant.coming_bytes += nbytes
        if lease.state is not LOST:
            tenant.leases += 1
            tenant.held_bytes += nbytes
        session = self._of_sessions[lease.session_id]
        session.leases += 1
        session.leases_on_gpus += 1
        session.returnable += lease.state in RETURNABLE
        if has_host_room(lease):
            tenant.host_bytes += nbytes
            session.backed_bytes += nbytes

    def count_session(self, session: Session) -> None:
        """Add a session to its tenant."""
        tenant = self._tenants[session.tenant]
        tenant.sessions += 1
        tenant.host_bytes += session.host_room.nbytes

    def differences(self) -> Iterator[Violation | None]:
        """What is wrong with each sum in turn, None where nothing is."""
        for gpu, of_gpu in self._said_of_gpus.items():
            yield _difference(gpu, of_gpu, self._gpus[gpu], gpu=gpu)
        for session_id in {**self._said_of_sessions, **self._of_sessions}:
            said_of_session = self._said_of_sessions.get(session_id, _OfSession())
            name = f"session {session_id}"
            yield _difference(name, said_of_session, self._of_sessions[session_id])
        owners: defaultdict[TenantName, _OfTenant] = defaultdict(_OfTenant)
        node = _OfTenant()
        for tenant in {**self._said_of_tenants, **self._tenants}:
            counted = self._tenants[tenant]
            owners[owner_of(tenant)].add(counted)
            node.add(counted)
            yield _difference(tenant, self._said_of_tenants.get(tenant, _OfTenant()), counted)
        for owner in {**self._said_of_owners, **owners}:
            said = self._said_of_owners.get(owner, _OfTenant())
            yield _difference(f"{owner} and its sub-tenants", said, owners[owner])
        yield _difference("the host room of the node", self._said_host_bytes, node.host_bytes)
        yield _difference("the leases that were named", self._said_named, len(self.leases))


def _said(accounts: Mapping[TenantName, TenantAccount]) -> dict[TenantName, _OfTenant]:
    return {
        name: _OfTenant(
            held_bytes=account.held_bytes,
            coming_bytes=account.coming_bytes,
            host_bytes=account.host_bytes,
            leases=account.leases,
            sessions=account.sessions,
        )
        for name, account in accounts.items()
    }


def _difference(
    name: str, said: object, counted: object, *, gpu: GpuUuid | None = None
) -> Violation | None:
    if said == counted:
        return None
    message = f"{name}'s records make {counted}, its account says {said}"
    return Violation(rule="recount", gpu=gpu, lease_id=None, message=message)
