"""The life of one slab, as a table.

Every change of a lease's state goes through `next_state`. A pair that is not in the table is a bug
in the broker, never the caller's fault. `None` stands for a slab that is not in the books: before
it was asked for, and after the driver has its bytes back.

Covers every slab that is made for a lease. Scrubbed slabs kept in stock (WARM) are no part of it:
there are none yet, each slab is made for its lease and goes back to the driver after it.
"""

from __future__ import annotations

from enum import Enum

from aqua_daemon.core.errors import InvalidTransition
from aqua_daemon.core.model import LeaseState


class Move(Enum):
    """What can happen to a slab."""

    __hash__ = object.__hash__  # as that of `LeaseState`

    REQUESTED = "requested"  # a session was promised it
    ALLOCATED = "allocated"  # the keeper has made it: it is granted
    FAILED = "failed"  # the keeper could not make it
    UNWANTED = "unwanted"  # made, but its GPU wants the bytes, or nobody can have it (any more)
    ADOPTED = "adopted"  # a keeper held it when it attached, and the books knew nothing of it
    REVOKED = "revoked"
    EXCHANGED = "exchanged"  # its holder gives it back instead of another that was revoked
    SPARED = "spared"  # it was revoked, and its holder gives others back instead
    RELEASED = "released"  # the holder gave it back by itself
    ACKNOWLEDGED = "acknowledged"  # the holder gave it back when asked
    CLOSED = "closed"  # the holder said goodbye, having unmapped everything
    PROVED_GONE = "proved_gone"  # process and sentinel have ended: nobody can touch it
    OVERDUE = "overdue"  # the deadline passed
    INHERITED = "inherited"  # the holder's process ended, and something still holds its sentinel
    DOUBTED = "doubted"  # an invariant does not hold for it
    FREE_ASKED = "free_asked"
    FREED = "freed"
    KEEPER_ENDED = "keeper_ended"
    VANISHED = "vanished"  # a keeper attached and does not have it
    TOLD = "told"  # the holder of a lost slab knows


_HELD = (LeaseState.LEASED, LeaseState.REVOKING, LeaseState.QUARANTINED)
_NOT_HELD = (LeaseState.ALLOCATING, LeaseState.RETURNED, LeaseState.FREEING)

TRANSITIONS: dict[tuple[LeaseState | None, Move], LeaseState | None] = {
    (None, Move.REQUESTED): LeaseState.ALLOCATING,
    (None, Move.ADOPTED): LeaseState.LEASED,
    (None, Move.UNWANTED): LeaseState.RETURNED,
    (LeaseState.ALLOCATING, Move.ALLOCATED): LeaseState.LEASED,
    (LeaseState.ALLOCATING, Move.UNWANTED): LeaseState.RETURNED,
    (LeaseState.ALLOCATING, Move.FAILED): None,
    (LeaseState.LEASED, Move.REVOKED): LeaseState.REVOKING,
    (LeaseState.LEASED, Move.EXCHANGED): LeaseState.REVOKING,
    (LeaseState.LEASED, Move.DOUBTED): LeaseState.QUARANTINED,
    (LeaseState.LEASED, Move.RELEASED): LeaseState.RETURNED,
    (LeaseState.LEASED, Move.ACKNOWLEDGED): LeaseState.RETURNED,
    (LeaseState.LEASED, Move.CLOSED): LeaseState.RETURNED,
    (LeaseState.REVOKING, Move.SPARED): LeaseState.LEASED,
    (LeaseState.REVOKING, Move.OVERDUE): LeaseState.QUARANTINED,
    (LeaseState.REVOKING, Move.INHERITED): LeaseState.QUARANTINED,
    (LeaseState.REVOKING, Move.DOUBTED): LeaseState.QUARANTINED,
    **{
        (state, move): LeaseState.RETURNED
        for state in (LeaseState.REVOKING, LeaseState.QUARANTINED)
        for move in (Move.RELEASED, Move.ACKNOWLEDGED, Move.CLOSED, Move.PROVED_GONE)
    },
    (LeaseState.RETURNED, Move.FREE_ASKED): LeaseState.FREEING,
    (LeaseState.FREEING, Move.FREED): None,
    # What nobody holds is simply gone with its keeper; a holder has to be told.
    **{(state, Move.KEEPER_ENDED): LeaseState.LOST for state in _HELD},
    **{(state, Move.VANISHED): LeaseState.LOST for state in _HELD},
    **{(state, Move.KEEPER_ENDED): None for state in _NOT_HELD},
    **{(state, Move.VANISHED): None for state in _NOT_HELD},
    (LeaseState.LOST, Move.TOLD): None,
}


def next_state(state: LeaseState | None, move: Move) -> LeaseState | None:
    """Look up where *move* takes a slab that is in *state*."""
    try:
        return TRANSITIONS[state, move]
    except KeyError:
        name = "not in the books" if state is None else state.value
        msg = f"a slab that is {name} cannot be {move.value}: the life-cycle table has no such move"
        raise InvalidTransition(msg) from None
