"""A quiet GPU: for a while the broker neither grows nor shrinks there.

An engine that measures its GPU's memory at start-up would take what comes and goes meanwhile for
its own. So nothing is granted there, nothing is revoked for the reserve, and what comes back is
freed only afterwards; what is owed to a reclaim is freed at once. A quiet GPU is not a safe one:
its owner may still grow into the reserve. So it ends soon, and with the session that asked for it.

An engine that wants nearly all of its GPU finds too little where much is lent. For it all goes back
first; who asks starts the engine when it has come.
"""

from __future__ import annotations

from aqua_daemon.core.accounts import GpuAccount, Quiet
from aqua_daemon.core.errors import InvalidRequest
from aqua_daemon.core.events import QuiesceRequested
from aqua_daemon.core.instructions import AnswerQuiesce
from aqua_daemon.core.model import RETURNED, RevokeReason
from aqua_daemon.core.returning import send_free
from aqua_daemon.core.revoking import revoke
from aqua_daemon.core.sizes import LONGEST_QUIESCE_SECONDS
from aqua_daemon.core.turn import Turn


def request_quiet(turn: Turn, event: QuiesceRequested) -> None:
    """Make a GPU quiet for so long from now, or with 0 seconds end what this session asked for."""
    session = turn.living_admin(event.session_id, "quiesce a GPU")
    account = turn.ledger.gpu_here(event.gpu)
    if not 0 <= event.seconds <= LONGEST_QUIESCE_SECONDS:
        msg = f"{event.seconds:g} s of quiet: give 0 to {LONGEST_QUIESCE_SECONDS:g} s"
        raise InvalidRequest(msg)
    if turn.repeated(session, event.request_id):
        return
    before = account.quiets.pop(event.session_id, None)
    ends_at = turn.now
    if event.seconds:
        started_at = turn.now if before is None else before.started_at
        # Asking again does not make it last for ever.
        ends_at = min(turn.now + event.seconds, started_at + LONGEST_QUIESCE_SECONDS)
        takes_back = event.takes_back or (before is not None and before.takes_back)
        account.quiets[event.session_id] = Quiet(
            started_at=started_at, ends_at=ends_at, takes_back=takes_back
        )
        if event.takes_back:
            take_all_back(turn, account)
    resume(turn, account)
    turn.answer(
        AnswerQuiesce(
            session_id=event.session_id,
            request_id=event.request_id,
            gpu=event.gpu,
            seconds=ends_at - turn.now,
        )
    )


def go_on(turn: Turn, account: GpuAccount) -> None:
    """Take back what a keeper turned out to hold there; its holder may yet have to come."""
    if account.is_taken_back:
        take_all_back(turn, account, least_seconds=turn.books.settings.term_seconds)


def take_all_back(turn: Turn, account: GpuAccount, *, least_seconds: float = 0.0) -> None:
    """An owner wants all of its GPU, by the standard deadlines.

    What was on its way back for others, or waits for the end of a quiet, is its own, too.
    """
    leases = turn.ledger.leases_of(account)
    revoke(turn, leases, reason=RevokeReason.OWNER, least_seconds=least_seconds)
    for lease in leases:
        if lease.state is RETURNED:
            send_free(turn, lease)


def end_overdue(turn: Turn, account: GpuAccount) -> None:
    """End what has lasted as long as it was to; then what came back meanwhile is freed."""
    for session_id, quiet in tuple(account.quiets.items()):
        if quiet.ends_at <= turn.now:
            del account.quiets[session_id]
    resume(turn, account)


def resume(turn: Turn, account: GpuAccount) -> None:
    """Free what waited for the end of the quiet, once nobody wants it quiet any more."""
    if account.is_quiet or not account.has_postponed:
        return
    account.has_postponed = False
    for lease in turn.ledger.leases_of(account):
        if lease.state is RETURNED:
            send_free(turn, lease)
