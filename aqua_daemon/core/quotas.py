"""Quotas that admins set: bytes and leases, in all states but LOST, and sessions of a tenant.

With them go the tenant's weight among those who share what is short, and its priority among those
who give back.

A setting has a revision, so that two admins, or one and a tool that repeats itself, can tell whose
is in force. A quota below what is held takes nothing back: it bars grants until enough came back by
itself. Keeping the settings over a restart is not done here: that is the settings' file.
"""

from __future__ import annotations

from typing import TypeVar

from aqua_daemon.core.books import Books
from aqua_daemon.core.errors import InvalidRequest
from aqua_daemon.core.events import QuotaSet, Unchanged
from aqua_daemon.core.instructions import AnswerQuota
from aqua_daemon.core.limits import UNSET, Quota, QuotaOutcome
from aqua_daemon.core.model import TenantName
from aqua_daemon.core.sizes import (
    LARGEST_WEIGHT,
    MOST_PRIORITY,
    MOST_QUOTAS,
    SMALLEST_WEIGHT,
)
from aqua_daemon.core.turn import Turn

_NumberT = TypeVar("_NumberT", int, float)


def set_quota(turn: Turn, event: QuotaSet) -> None:
    """Put a quota in force, unless a later one is; the answer says which is."""
    session = turn.living_admin(event.session_id, "set quotas")
    _check(turn.books, event)
    if turn.repeated(session, event.request_id):
        return
    before = turn.books.quotas.get(event.tenant, UNSET)
    revision = before.revision + 1 if event.revision is None else event.revision
    after = Quota(
        revision=revision,
        nbytes=_changed(before.nbytes, event.nbytes),
        leases=_changed(before.leases, event.leases),
        sessions=_changed(before.sessions, event.sessions),
        weight=_changed(before.weight, event.weight),
        priority=_changed(before.priority, event.priority),
    )
    outcome = _outcome(before, after)
    if outcome is QuotaOutcome.APPLIED and after != before:
        turn.books.quotas[event.tenant] = after
        turn.books.shares = None
        turn.ledger.quota_account(event.tenant).excuse()
    if outcome is QuotaOutcome.APPLIED and _is_over(turn, event.tenant):
        outcome = QuotaOutcome.DEFERRED
    turn.answer(
        AnswerQuota(
            session_id=event.session_id,
            request_id=event.request_id,
            tenant=event.tenant,
            outcome=outcome,
            quota=turn.books.quotas.get(event.tenant, UNSET),
        )
    )


def _changed(before: _NumberT | None, wanted: _NumberT | Unchanged | None) -> _NumberT | None:
    return before if isinstance(wanted, Unchanged) else wanted


def _is_over(turn: Turn, tenant: TenantName) -> bool:
    """Whether more is held than its quota allows, so that some has to come back by itself."""
    limits = dict(turn.books.limits_over(tenant))[tenant]
    account = turn.ledger.quota_account(tenant)
    return (
        account.held_bytes > limits.nbytes
        or account.leases > limits.leases
        or account.sessions > limits.sessions
    )


def _outcome(before: Quota, after: Quota) -> QuotaOutcome:
    if after.revision < before.revision:
        return QuotaOutcome.STALE
    if after.revision == before.revision and after != before:
        return QuotaOutcome.CONFLICT
    return QuotaOutcome.APPLIED


def _check(books: Books, event: QuotaSet) -> None:
    wishes = (("bytes", event.nbytes), ("leases", event.leases), ("sessions", event.sessions))
    for name, wanted in wishes:
        if isinstance(wanted, int) and wanted < 0:
            msg = f"a quota of {wanted} {name}: it may not be below 0"
            raise InvalidRequest(msg)
    if isinstance(event.weight, float | int) and not (
        SMALLEST_WEIGHT <= event.weight <= LARGEST_WEIGHT
    ):
        msg = f"a weight of {event.weight:g}: give {SMALLEST_WEIGHT:g} to {LARGEST_WEIGHT:g}"
        raise InvalidRequest(msg)
    if isinstance(event.priority, int) and abs(event.priority) > MOST_PRIORITY:
        msg = f"a priority of {event.priority}: give {-MOST_PRIORITY} to {MOST_PRIORITY}"
        raise InvalidRequest(msg)
    if event.revision is not None and event.revision < 1:
        msg = f"revision {event.revision}: the first is 1"
        raise InvalidRequest(msg)
    if event.tenant not in books.quotas and len(books.quotas) >= MOST_QUOTAS:
        msg = f"{MOST_QUOTAS} tenants have quotas: no more can be kept; raise the node's default"
        raise InvalidRequest(msg)
