"""Every invariant that the books can see, as a search for what breaks it in one record.

Numbers are those of the design: (1) one tenant a slab, (2) the keepers' reports, (4) nothing
returned or free too soon, (5) quotas, (6) deadlines. Each question costs the same whatever else is
in the books. That the sums (2) are those of the records is `recount`, going through all of it
`auditing`; what a running broker does about what is found is `faults`.
"""

from __future__ import annotations

from dataclasses import dataclass

from aqua_daemon.core.accounts import RETURNABLE, GpuAccount
from aqua_daemon.core.books import Books
from aqua_daemon.core.ledger import Ledger
from aqua_daemon.core.model import (
    DEAD,
    FREEING,
    LEASED,
    LOST,
    QUARANTINED,
    RETURNED,
    REVOKING,
    GpuUuid,
    Lease,
    LeaseId,
    TenantName,
)

# In these states the keeper has said that it made the slab and not that it freed it.
_MADE = frozenset(
    {
        LEASED,
        REVOKING,
        QUARANTINED,
        RETURNED,
        FREEING,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One invariant that does not hold."""

    rule: str
    gpu: GpuUuid | None
    lease_id: LeaseId | None
    message: str


def violations_of_lease(books: Books, lease: Lease) -> list[Violation]:
    """What is wrong with one lease."""
    ledger = books.ledger
    session = ledger.sessions.get(lease.session_id)
    if session is None:
        return [_of(lease, "holder", f"its session {lease.session_id} is not in the books")]
    found: list[Violation] = []
    lease_id, state, revocation = lease.lease_id, lease.state, lease.revocation
    account = ledger.session_accounts[lease.session_id]
    gpu = ledger.gpus[lease.lender]
    if lease_id not in account.leases or lease_id not in gpu.leases:
        found.append(_of(lease, "recount", "it is not on the list of its GPU or of its session"))
    if (state in RETURNABLE) is not (lease_id in account.returnable):
        text = f"it is {state.value}, which its session's list of what it has does not say"
        found.append(_of(lease, "recount", text))
    if session.state is DEAD:
        if state is LEASED:
            found.append(_of(lease, "dead_holder", "it is leased to a process that has ended"))
        if session.sentinel_ended and lease_id in account.recalled:
            text = f"it is {state.value} and its holder proved gone"
            found.append(_of(lease, "proved_gone", text))
    if state is REVOKING and revocation is None:
        text = "it is revoking, for no reason and without a deadline"
        found.append(_of(lease, "revocation", text))
    if state is LEASED and revocation is not None:
        text = f"it is leased, and still revoked ({revocation.reason.value})"
        found.append(_of(lease, "revocation", text))
    if state in _MADE:
        held_bytes = gpu.keeper_slabs.get(lease_id)
        if held_bytes != lease.nbytes:
            text = f"the books have {lease.nbytes} bytes {state.value}, its keeper "
            text += "none" if held_bytes is None else f"{held_bytes}"
            found.append(_of(lease, "keeper", text))
    return found


def overdue(books: Books, lease: Lease) -> list[Violation]:
    """Whether a revoke has outlived its deadline: at the last tick it had to end."""
    if lease.state is not REVOKING or lease.revocation is None:
        return []
    if books.ticked_at is None or lease.revocation.deadline > books.ticked_at:
        return []
    late_seconds = books.ticked_at - lease.revocation.deadline
    return [_of(lease, "deadline", f"it was revoking {late_seconds:.3f} s past its deadline")]


def violations_of_owed(books: Books, lease_id: LeaseId) -> list[Violation]:
    """Whether a reclaim waits for what nobody was asked for."""
    lease = books.ledger.leases.get(lease_id)
    if lease is None or lease.state is not LEASED:
        return []
    return [_of(lease, "reclaim", "a reclaim waits for it, and it is leased")]


def violations_of_gpu(account: GpuAccount) -> list[Violation]:
    """What is wrong with the sums of one GPU, without counting its leases again."""
    found: list[Violation] = []
    sums = account.bytes_in.values()
    is_right = (
        sum(sums) - account.bytes_in[LOST] == account.held_bytes
        and min(sums) >= 0
        and account.strange_bytes == sum(account.strange_slabs.values())
    )
    if not is_right:
        by_state = {state.value: nbytes for state, nbytes in account.bytes_in.items()}
        message = f"holds {account.held_bytes} bytes in all and {by_state} by state"
        found.append(Violation(rule="sums", gpu=account.gpu, lease_id=None, message=message))
    for lease_id, nbytes in account.strange_slabs.items():
        message = f"its keeper holds slab {lease_id} of {nbytes} bytes, which is not in the books"
        found.append(
            Violation(rule="strange_slab", gpu=account.gpu, lease_id=lease_id, message=message)
        )
    return found


def violations_of_slab(ledger: Ledger, account: GpuAccount, lease_id: LeaseId) -> list[Violation]:
    """Whether somebody accounts for what a keeper holds."""
    if lease_id in ledger.leases or lease_id in account.strange_slabs:
        return []
    nbytes = account.keeper_slabs.get(lease_id)
    if nbytes is None:
        return []
    message = f"its keeper holds {nbytes} bytes of {lease_id}, which nobody accounts for"
    return [Violation(rule="keeper", gpu=account.gpu, lease_id=lease_id, message=message)]


def violations_of_tenant(books: Books, tenant: TenantName) -> list[Violation]:
    """Whether a tenant holds more than it may; what it held before a restart or a new quota, it may keep."""
    found: list[Violation] = []
    for name, limits in books.limits_over(tenant):
        account = books.ledger.quota_account(name)
        allowed_bytes = max(limits.nbytes, account.excused_bytes)
        if not 0 <= account.held_bytes <= allowed_bytes or account.host_bytes < 0:
            message = (
                f"{name} holds {account.held_bytes} of {allowed_bytes} bytes and "
                f"{account.host_bytes} of host room"
            )
            found.append(Violation(rule="quota", gpu=None, lease_id=None, message=message))
        allowed_leases = max(limits.leases, account.excused_leases)
        allowed_sessions = max(limits.sessions, account.excused_sessions)
        if account.leases > allowed_leases or account.sessions > allowed_sessions:
            message = (
                f"{name} has {account.leases} of {allowed_leases} leases and "
                f"{account.sessions} of {allowed_sessions} sessions"
            )
            found.append(Violation(rule="quota", gpu=None, lease_id=None, message=message))
    return found


def _of(lease: Lease, rule: str, text: str) -> Violation:
    message = f"lease {lease.lease_id} on {lease.lender}: {text}"
    return Violation(rule=rule, gpu=lease.lender, lease_id=lease.lease_id, message=message)
