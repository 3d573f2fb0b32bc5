"""What a running broker does about a broken invariant: it counts it, and limits the harm.

The slab in question is set apart and asked back, and nothing is granted any more on its GPU until
another keeper serves it. One fault counts once, however often it is found.
"""

from __future__ import annotations

from dataclasses import replace

from aqua_daemon.core.instructions import NoteBrokenInvariant
from aqua_daemon.core.integrity import (
    Violation,
    violations_of_gpu,
    violations_of_lease,
    violations_of_tenant,
)
from aqua_daemon.core.lifecycle import Move
from aqua_daemon.core.model import (
    LEASED,
    REVOKING,
    Revocation,
    RevokeReason,
    TenantName,
)
from aqua_daemon.core.revoking import send_revokes
from aqua_daemon.core.turn import Turn


def violations_of_touched(turn: Turn) -> list[Violation]:
    """What is wrong with that which the event has touched."""
    books, ledger = turn.books, turn.ledger
    found: list[Violation] = []
    gpus = dict.fromkeys(turn.touched_gpus)
    tenants: dict[TenantName, None] = {}
    for lease_id in turn.touched:
        lease = ledger.leases.get(lease_id)
        if lease is not None:
            found += violations_of_lease(books, lease)
            gpus[lease.lender] = None
            tenants[lease.tenant] = None
    for lease in turn.struck:
        gpus[lease.lender] = None
    for gpu in gpus:
        found += violations_of_gpu(ledger.gpus[gpu])
    for tenant in tenants:
        found += violations_of_tenant(books, tenant)
    return found


def contain(turn: Turn, violation: Violation) -> None:
    """Count a violation that is new, set its slab apart, and lend nothing more of its GPU."""
    key = (violation.rule, violation.gpu, violation.lease_id)
    if key in turn.books.known_faults:
        return
    turn.books.known_faults.add(key)
    turn.books.violations += 1
    turn.emit(
        NoteBrokenInvariant(
            rule=violation.rule,
            message=violation.message,
            gpu=violation.gpu,
            lease_id=violation.lease_id,
        )
    )
    if violation.gpu is not None:
        account = turn.ledger.gpus[violation.gpu]
        account.doubt = account.doubt or f"in doubt: {violation.message}"
    lease = turn.ledger.leases.get(violation.lease_id) if violation.lease_id else None
    if lease is None or lease.state not in {LEASED, REVOKING}:
        return
    if lease.session_id not in turn.ledger.sessions:
        return  # there is nobody to ask it back from, and no account to count it in
    revocation = Revocation(reason=RevokeReason.FAULT, started_at=turn.now, deadline=turn.now)
    if lease.revocation is not None:
        revocation = replace(lease.revocation, reason=RevokeReason.FAULT)
    send_revokes(turn, [turn.move(lease, Move.DOUBTED, revocation=revocation)])
