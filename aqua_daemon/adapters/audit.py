"""One line for each step in the life of a slab: who, what, and why, under keys that stay.

Covers these keys and what they are taken from. Does not cover the rest of the log (journal). The keys
lie flat, as the ids of all other lines do, so that one filter finds the whole story of a lease.
"""

from __future__ import annotations

from aqua_daemon.core.instructions import NoteMove

AUDIT_KEYS = (
    "tenant",  # who
    "uid",
    "pid",
    "session_id",
    "lease_id",  # what
    "gpu",
    "nbytes",
    "before",
    "after",
    "move",
    "reason",  # why
)


def audited(note: NoteMove) -> dict[str, str | int | None]:
    """The line of one step; `before` and `after` are null where there is no slab.

    `reason` is what the lease was asked back for, from then on to its end; a slab that nobody asked
    back moves for the `move` itself: it was requested, released, its keeper ended.
    """
    lease, holder = note.lease, note.holder
    revocation = note.spared or lease.revocation
    return {
        "tenant": lease.tenant,
        "uid": None if holder is None else holder.uid,
        "pid": None if holder is None else holder.pid,
        "session_id": lease.session_id,
        "lease_id": lease.lease_id,
        "gpu": lease.lender,
        "nbytes": lease.nbytes,
        "before": None if note.before is None else note.before.value,
        "after": None if note.after is None else note.after.value,
        "move": note.why,
        "reason": note.why if revocation is None else revocation.reason.value,
    }
