"""What time alone does: silent sessions, lapsed and unclaimed leases, deadlines, the reserve.

All of it happens at a tick, and only what is due is looked at.
"""

from __future__ import annotations

from dataclasses import replace

from aqua_daemon.core.balancing import rebalance
from aqua_daemon.core.lending import settle
from aqua_daemon.core.model import (
    DEAD,
    LEASED,
    LIVE,
    SUSPECT,
    Lease,
    RevokeReason,
    SessionId,
)
from aqua_daemon.core.probing import give_up_overdue
from aqua_daemon.core.quiescing import end_overdue
from aqua_daemon.core.ramping import ramp
from aqua_daemon.core.revoking import keep_reserve, quarantine_if_overdue, revoke
from aqua_daemon.core.sessions import schedule
from aqua_daemon.core.sizes import SUSPECT_TERM_FRACTION
from aqua_daemon.core.turn import Turn


def tick(turn: Turn) -> None:
    """Look at everything that is due."""
    turn.books.ticked_at = turn.now
    for at, session_id in turn.books.session_timers.take_due(turn.now):
        _look_at_session(turn, session_id, at)
    _look_at_leases(turn)
    for account in turn.ledger.gpus.values():
        end_overdue(turn, account)
        settle(turn, account)
        ramp(turn, account)
        keep_reserve(turn, account)
    rebalance(turn)
    give_up_overdue(turn)
    turn.books.reclaim_timers.take_due(turn.now)  # the broker settles reclaims after each event


def _look_at_session(turn: Turn, session_id: SessionId, at: float) -> None:
    session = turn.ledger.sessions.get(session_id)
    if session is None or session.state is DEAD:
        return
    account = turn.ledger.session_accounts[session_id]
    if account.timer_at != at:
        return
    term_seconds = turn.books.settings.term_seconds
    if (
        session.state is LIVE
        and session.heard_at + term_seconds * SUSPECT_TERM_FRACTION <= turn.now
    ):
        session = replace(session, state=SUSPECT)
        turn.ledger.replace_session(session)
    if session.heard_at + term_seconds > turn.now:
        schedule(turn, session)
        return
    account.timer_at = None
    lapsed = [lease for lease in turn.ledger.leases_of(account) if lease.state is LEASED]
    revoke(turn, lapsed, reason=RevokeReason.LAPSED)


def _look_at_leases(turn: Turn) -> None:
    unclaimed: list[Lease] = []
    due = dict.fromkeys(lease_id for _, lease_id in turn.books.lease_timers.take_due(turn.now))
    for lease_id in due:
        lease = turn.ledger.leases.get(lease_id)
        if lease is None:
            continue
        if lease.state is LEASED:
            claim_ends_at = turn.ledger.named_at[lease_id] + turn.books.settings.term_seconds
            if claim_ends_at <= turn.now:
                unclaimed.append(lease)
            else:
                turn.books.lease_timers.push(claim_ends_at, lease_id)
        else:
            quarantine_if_overdue(turn, lease)
    revoke(turn, unclaimed, reason=RevokeReason.UNCLAIMED)
