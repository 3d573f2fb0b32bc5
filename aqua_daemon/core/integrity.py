"""Every invariant that the books can see, as a search for what breaks it.

Numbers are those of the design: (1) one tenant a slab, (2) the sums and the keepers' reports, (4)
nothing returned or free too soon, (5) quotas, (6) deadlines. Finding is all that happens here;
what a running broker does about it is `faults`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from aqua_daemon.core.accounts import GpuAccount, TenantAccount, has_host_room, is_coming
from aqua_daemon.core.model import (
    GpuUuid,
    Lease,
    LeaseId,
    LeaseState,
    SessionId,
    SessionState,
    TenantName,
    owner_of,
)
from aqua_daemon.core.turn import Books

# In these states the keeper has said that it made the slab and not that it freed it.
_MADE = frozenset(
    {
        LeaseState.LEASED,
        LeaseState.REVOKING,
        LeaseState.QUARANTINED,
        LeaseState.RETURNED,
        LeaseState.FREEING,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One invariant that does not hold."""

    rule: str
    gpu: GpuUuid | None
    lease_id: LeaseId | None
    message: str


def violations_of_lease(books: Books, lease: Lease) -> Iterator[Violation]:
    """What is wrong with one lease. Costs the same whatever else is in the books."""
    ledger = books.ledger
    session = ledger.sessions.get(lease.session_id)
    if session is None:
        yield _of(lease, "holder", f"its session {lease.session_id} is not in the books")
        return
    if session.state is SessionState.DEAD:
        if lease.state is LeaseState.LEASED:
            yield _of(lease, "dead_holder", "it is leased to a process that has ended")
        if session.sentinel_ended and lease.lease_id in _recalled(books, lease):
            yield _of(lease, "proved_gone", f"it is {lease.state.value} and its holder proved gone")
    if lease.state is LeaseState.REVOKING and lease.revocation is None:
        yield _of(lease, "revocation", "it is revoking, for no reason and without a deadline")
    if lease.state in _MADE:
        held_bytes = ledger.gpus[lease.lender].keeper_slabs.get(lease.lease_id)
        if held_bytes != lease.nbytes:
            text = f"the books have {lease.nbytes} bytes {lease.state.value}, its keeper "
            yield _of(lease, "keeper", text + f"{'none' if held_bytes is None else held_bytes}")


def violations_of_gpu(account: GpuAccount) -> Iterator[Violation]:
    """What is wrong with the sums of one GPU, without counting its leases again."""
    held_bytes = sum(account.bytes_in.values()) - account.bytes_in[LeaseState.LOST]
    if held_bytes != account.held_bytes or min(account.bytes_in.values()) < 0:
        sums = {state.value: nbytes for state, nbytes in account.bytes_in.items()}
        message = f"holds {account.held_bytes} bytes in all and {sums} by state"
        yield Violation(rule="sums", gpu=account.gpu, lease_id=None, message=message)
    for lease_id, nbytes in account.strange_slabs.items():
        message = f"its keeper holds slab {lease_id} of {nbytes} bytes, which is not in the books"
        yield Violation(rule="strange_slab", gpu=account.gpu, lease_id=lease_id, message=message)


def violations_of_tenant(books: Books, tenant: TenantName) -> Iterator[Violation]:
    """Whether a tenant holds more than it may; what it held before a restart or a new quota, it may keep."""
    for name, limits in books.limits_over(tenant):
        account = books.ledger.quota_account(name)
        allowed_bytes = max(limits.nbytes, account.excused_bytes)
        if not 0 <= account.held_bytes <= allowed_bytes or account.host_bytes < 0:
            message = (
                f"{name} holds {account.held_bytes} of {allowed_bytes} bytes and "
                f"{account.host_bytes} of host room"
            )
            yield Violation(rule="quota", gpu=None, lease_id=None, message=message)
        allowed_leases = max(limits.leases, account.excused_leases)
        allowed_sessions = max(limits.sessions, account.excused_sessions)
        if account.leases > allowed_leases or account.sessions > allowed_sessions:
            message = (
                f"{name} has {account.leases} of {allowed_leases} leases and "
                f"{account.sessions} of {allowed_sessions} sessions"
            )
            yield Violation(rule="quota", gpu=None, lease_id=None, message=message)


def all_violations(books: Books) -> Iterator[Violation]:
    """Everything that is wrong, with each sum counted again from the leases."""
    ledger = books.ledger
    on_gpu: dict[GpuUuid, list[Lease]] = {gpu: [] for gpu in ledger.gpus}
    of_tenant: dict[TenantName, list[Lease]] = {tenant: [] for tenant in ledger.tenants}
    of_session: dict[SessionId, list[Lease]] = {session: [] for session in ledger.sessions}
    for lease in ledger.leases.values():
        yield from violations_of_lease(books, lease)
        yield from _overdue(books, lease)
        on_gpu[lease.lender].append(lease)
        of_tenant[lease.tenant].append(lease)
        of_session.get(lease.session_id, []).append(lease)
    for gpu, gpu_account in ledger.gpus.items():
        yield from violations_of_gpu(gpu_account)
        yield from _recounted_gpu(books, gpu_account, on_gpu[gpu])
    for tenant in ledger.tenants:
        yield from violations_of_tenant(books, tenant)
        yield from _recounted_tenant(books, tenant, of_tenant[tenant])
    for owner, account in ledger.owners.items():
        yield from _recounted_owner(books, owner, account)
    for session_id, leases in of_session.items():
        yield from _recounted_session(books, session_id, leases)
    host_bytes = sum(account.host_bytes for account in ledger.tenants.values())
    if host_bytes != ledger.host_bytes:
        message = f"tenants have {host_bytes} bytes of host room, the node says {ledger.host_bytes}"
        yield Violation(rule="recount", gpu=None, lease_id=None, message=message)


def _overdue(books: Books, lease: Lease) -> Iterator[Violation]:
    # At the last tick everything due had to end; between ticks nobody looked.
    if lease.state is not LeaseState.REVOKING or lease.revocation is None:
        return
    if books.ticked_at is not None and lease.revocation.deadline <= books.ticked_at:
        late_seconds = books.ticked_at - lease.revocation.deadline
        yield _of(lease, "deadline", f"it was revoking {late_seconds:.3f} s past its deadline")


def _recounted_gpu(books: Books, account: GpuAccount, leases: list[Lease]) -> Iterator[Violation]:
    bytes_in = dict.fromkeys(LeaseState, 0)
    for lease in leases:
        bytes_in[lease.state] += lease.nbytes
    coming_bytes = sum(lease.nbytes for lease in leases if is_coming(lease))
    is_right = (
        bytes_in == account.bytes_in
        and coming_bytes == account.coming_bytes
        and account.leases.keys() == {lease.lease_id for lease in leases}
        and account.borrowers == Counter(lease.borrower for lease in leases)
        and account.strange_bytes == sum(account.strange_slabs.values())
    )
    if not is_right:
        message = (
            f"its {len(leases)} leases hold {bytes_in}, {coming_bytes} of it coming back; "
            f"its account says {account.bytes_in} and {account.coming_bytes}"
        )
        yield Violation(rule="recount", gpu=account.gpu, lease_id=None, message=message)
    for lease_id, nbytes in account.keeper_slabs.items():
        if lease_id not in books.ledger.leases and lease_id not in account.strange_slabs:
            message = f"its keeper holds {nbytes} bytes of {lease_id}, which nobody accounts for"
            yield Violation(rule="keeper", gpu=account.gpu, lease_id=lease_id, message=message)


def _recounted_tenant(books: Books, tenant: TenantName, leases: list[Lease]) -> Iterator[Violation]:
    account = books.ledger.tenants[tenant]
    sessions = [found for found in books.ledger.sessions.values() if found.tenant == tenant]
    held = [lease.nbytes for lease in leases if lease.state is not LeaseState.LOST]
    host = sum(session.host_room.nbytes for session in sessions)
    host += sum(lease.nbytes for lease in leases if has_host_room(lease))
    counted = (sum(held), host, len(held), len(sessions))
    said = (account.held_bytes, account.host_bytes, account.leases, account.sessions)
    if counted != said:
        message = (
            f"{tenant}'s records make (bytes, host room, leases, sessions) {counted}; "
            f"its account says {said}"
        )
        yield Violation(rule="recount", gpu=None, lease_id=None, message=message)


def _recounted_owner(
    books: Books, owner: TenantName, account: TenantAccount
) -> Iterator[Violation]:
    parts = [part for name, part in books.ledger.tenants.items() if owner_of(name) == owner]
    counted = (
        sum(part.held_bytes for part in parts),
        sum(part.host_bytes for part in parts),
        sum(part.leases for part in parts),
        sum(part.sessions for part in parts),
    )
    said = (account.held_bytes, account.host_bytes, account.leases, account.sessions)
    if counted != said:
        message = (
            f"{owner} and its sub-tenants have (bytes, host room, leases, sessions) {counted}, "
            f"their account says {said}"
        )
        yield Violation(rule="recount", gpu=None, lease_id=None, message=message)


def _recounted_session(
    books: Books, session_id: SessionId, leases: list[Lease]
) -> Iterator[Violation]:
    account = books.ledger.session_accounts[session_id]
    backed_bytes = sum(lease.nbytes for lease in leases if has_host_room(lease))
    if (
        account.leases.keys() != {lease.lease_id for lease in leases}
        or account.backed_bytes != backed_bytes
        or sum(account.leases_on.values()) != len(leases)
    ):
        message = (
            f"session {session_id} holds {len(leases)} leases with {backed_bytes} bytes of host "
            f"room, its account says {len(account.leases)} and {account.backed_bytes}"
        )
        yield Violation(rule="recount", gpu=None, lease_id=None, message=message)


def _recalled(books: Books, lease: Lease) -> dict[LeaseId, None]:
    return books.ledger.session_accounts[lease.session_id].recalled


def _of(lease: Lease, rule: str, text: str) -> Violation:
    message = f"lease {lease.lease_id} on {lease.lender}: {text}"
    return Violation(rule=rule, gpu=lease.lender, lease_id=lease.lease_id, message=message)
