"""GPUs whose keepers keep ending: they lend nothing for a while, the longer the more often.

Story of a sick GPU: a keeper ends there because its context has died, and what was lent is lost.
The next keeper finds the GPU well, for as long as nobody uses it. So one end is an accident, but
after each further one within an hour the GPU rests, for a time that doubles. It lends again by
itself when that is over, and at once when an admin undrains it.
"""

from __future__ import annotations

from aqua_daemon.core.accounts import GpuAccount, Rest
from aqua_daemon.core.turn import Turn

REMEMBERED_SECONDS = 3600.0
LONGEST_REST_SECONDS = 600.0
_MOST_DOUBLINGS = 16  # of a thousand ends no float knows the double


def note_end(turn: Turn, account: GpuAccount) -> None:
    """A keeper that had been heard is gone."""
    shortest = turn.books.settings.rest_seconds
    recent = [at for at in account.keeper_ends if at > turn.now - REMEMBERED_SECONDS]
    account.keeper_ends = (*recent, turn.now)
    if recent and shortest:
        doublings = min(len(recent) - 1, _MOST_DOUBLINGS)
        seconds = min(shortest * 2**doublings, LONGEST_REST_SECONDS)
        account.rest = Rest(ends_at=turn.now + seconds, seconds=seconds, keepers=len(recent) + 1)


def settle(turn: Turn, account: GpuAccount) -> None:
    """See whether it has rested long enough."""
    if account.rest is not None and turn.now >= account.rest.ends_at:
        account.rest = None


def wake(account: GpuAccount) -> bool:
    """An admin takes it to be well, and what was to be forgotten; whether it rested."""
    rested = account.rest is not None
    account.rest = None
    account.keeper_ends = ()
    return rested
