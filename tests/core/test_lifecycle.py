"""The life of a slab: every move that is in the table, and none that is not."""

from __future__ import annotations

import itertools

import pytest

from aqua_daemon.core.errors import BrokerBug, InvalidTransition
from aqua_daemon.core.lifecycle import TRANSITIONS, Move, next_state
from aqua_daemon.core.model import LeaseState

STATES = (None, *LeaseState)
HELD = (LeaseState.LEASED, LeaseState.REVOKING, LeaseState.QUARANTINED)


@pytest.mark.parametrize(
    ("before", "move", "after"),
    [
        (None, Move.REQUESTED, LeaseState.ALLOCATING),
        (LeaseState.ALLOCATING, Move.ALLOCATED, LeaseState.LEASED),
        (LeaseState.ALLOCATING, Move.FAILED, None),
        (LeaseState.ALLOCATING, Move.UNWANTED, LeaseState.RETURNED),
        (None, Move.ADOPTED, LeaseState.LEASED),
        (LeaseState.LEASED, Move.RELEASED, LeaseState.RETURNED),
        (LeaseState.LEASED, Move.REVOKED, LeaseState.REVOKING),
        (LeaseState.LEASED, Move.EXCHANGED, LeaseState.REVOKING),
        (LeaseState.REVOKING, Move.SPARED, LeaseState.LEASED),
        (LeaseState.REVOKING, Move.ACKNOWLEDGED, LeaseState.RETURNED),
        (LeaseState.REVOKING, Move.OVERDUE, LeaseState.QUARANTINED),
        (LeaseState.REVOKING, Move.INHERITED, LeaseState.QUARANTINED),
        (LeaseState.QUARANTINED, Move.ACKNOWLEDGED, LeaseState.RETURNED),
        (LeaseState.QUARANTINED, Move.PROVED_GONE, LeaseState.RETURNED),
        (LeaseState.RETURNED, Move.FREE_ASKED, LeaseState.FREEING),
        (LeaseState.FREEING, Move.FREED, None),
        (LeaseState.LOST, Move.TOLD, None),
    ],
)
def test_a_slab_moves_as_the_table_says(
    before: LeaseState | None, move: Move, after: LeaseState | None
) -> None:
    """The story of a slab, step by step."""
    assert next_state(before, move) is after


@pytest.mark.parametrize(
    ("state", "move"),
    [pair for pair in itertools.product(STATES, Move) if pair not in TRANSITIONS],
)
def test_a_move_that_is_not_in_the_table_is_a_bug_of_the_broker(
    state: LeaseState | None, move: Move
) -> None:
    """A missing pair raises, and says which."""
    with pytest.raises(InvalidTransition, match=move.value) as caught:
        next_state(state, move)
    assert isinstance(caught.value, BrokerBug)


@pytest.mark.parametrize("state", HELD)
def test_what_somebody_holds_is_lost_with_its_keeper_until_it_is_told(state: LeaseState) -> None:
    """A holder has to hear of it, so the record stays."""
    assert next_state(state, Move.KEEPER_ENDED) is LeaseState.LOST
    assert next_state(state, Move.VANISHED) is LeaseState.LOST


@pytest.mark.parametrize("state", [LeaseState.ALLOCATING, LeaseState.RETURNED, LeaseState.FREEING])
def test_what_nobody_holds_is_gone_with_its_keeper(state: LeaseState) -> None:
    """There is nobody to tell."""
    assert next_state(state, Move.KEEPER_ENDED) is None


def test_only_a_word_or_a_proof_makes_a_slab_returned() -> None:
    """No time that passes and no message of a keeper takes a slab from its holder."""
    ways = {
        move
        for (state, move), after in TRANSITIONS.items()
        if state in HELD and after is LeaseState.RETURNED
    }
    assert ways == {Move.RELEASED, Move.ACKNOWLEDGED, Move.CLOSED, Move.PROVED_GONE}


def test_proof_of_death_takes_nothing_that_was_not_revoked_first() -> None:
    """A dead process's leases are revoking before they return, so that the story is whole."""
    assert (LeaseState.LEASED, Move.PROVED_GONE) not in TRANSITIONS


def test_nothing_revives_a_lease() -> None:
    """The only ways into LEASED are a keeper's answer and its inventory, and others in its place."""
    ways = {pair for pair, after in TRANSITIONS.items() if after is LeaseState.LEASED}
    assert ways == {
        (LeaseState.ALLOCATING, Move.ALLOCATED),
        (None, Move.ADOPTED),
        (LeaseState.REVOKING, Move.SPARED),
    }


def test_only_the_keeper_or_the_told_holder_ends_a_slab() -> None:
    """A slab leaves the books when its bytes are the driver's, or never existed, or are lost."""
    ways = {move for move_of, after in TRANSITIONS.items() if after is None for move in move_of[1:]}
    assert ways == {Move.FAILED, Move.FREED, Move.KEEPER_ENDED, Move.VANISHED, Move.TOLD}


def test_every_state_but_the_first_can_be_left() -> None:
    """No slab can be stuck for want of a move."""
    assert {state for state, _ in TRANSITIONS} == set(STATES)
