"""A GPU that begins to lend, or to lend again, is filled step by step.

All who wait for memory would take it in the same moment, and its owner, if it was mistaken, would
have all of it evacuated. So at first one slab more may be lent there than is, and after the ramp's
time all. A GPU that lends already, or that lent before this daemon, has no ramp.
"""

from __future__ import annotations

from aqua_daemon.core.accounts import GpuAccount, Ramp
from aqua_daemon.core.turn import Turn


def ramp(turn: Turn, account: GpuAccount) -> None:
    """See whether a GPU has closed, opened, or come further."""
    seconds = turn.books.settings.ramp_seconds
    if not seconds or account.total_bytes is None:
        return
    step_bytes = turn.books.settings.largest_slab_bytes
    if account.no_grants_because or account.waits_for:
        account.ramp = Ramp(opened_at=None, most_bytes=account.held_bytes + step_bytes)
        return
    if account.ramp is None:
        return
    opened_at = turn.now if account.ramp.opened_at is None else account.ramp.opened_at
    part = (turn.now - opened_at) / seconds
    if part >= 1.0:
        account.ramp = None
        return
    most_bytes = max(account.ramp.most_bytes, step_bytes + int(part * account.total_bytes))
    account.ramp = Ramp(opened_at=opened_at, most_bytes=most_bytes)
