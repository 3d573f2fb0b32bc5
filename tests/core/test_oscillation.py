"""Load that swings, with whatever period, moves a bounded number of slabs: the bounds are derived here.

An owner's load. What it lets go is lent after a settle time S in which it did not come back, and what
is lent leaves 1.5 reserves free, while revokes begin below one. So a rise by A asks for at most
A - reserve / 2 bytes in whole slabs, a rise that is no more than half a reserve asks for nothing, and
the same bytes can be asked for again S later at the soonest: 1 + T / S times in a time T.

Borrowers' demand. What one tenant has above its share is asked for when another wants it. It can't have it
again while that want is remembered, WANT_SECONDS, however soon the other lets go: 1 + T / WANT_SECONDS
times in T. And whatever is wanted, no slab is moved by choice that was not held for REST_SECONDS: of all
that there are, each 1 + T / REST_SECONDS times.
"""

from __future__ import annotations

import math

import pytest

from aqua_daemon.core import balancing
from aqua_daemon.core.errors import RefusedForNow
from aqua_daemon.core.events import SlabAllocated
from aqua_daemon.core.instructions import SendRevoke
from aqua_daemon.core.model import LeaseId, LeaseState, RevokeReason, SessionId
from aqua_daemon.core.sizes import MIB, REST_SECONDS, WANT_SECONDS, reserve_bytes
from tests.core.bench import ALICE, BOB, GPU_BYTES, NEAR, Bench, use

SETTLE_SECONDS = 5.0
STEP_SECONDS = 0.25
SECONDS = 60.0
PERIODS = (0.5, 1.0, 3.0, 7.0, 11.0, 15.0, 24.0, 40.0)
SIZE = 8 * MIB  # of a slab
RESERVE_BYTES = reserve_bytes(GPU_BYTES)
SLABS = math.floor((GPU_BYTES - 1.5 * RESERVE_BYTES) / SIZE)  # that may be lent


class Swinging(Bench):
    """A node whose clients answer at once, and take whatever they can have."""

    def __init__(self, **settings: object) -> None:
        super().__init__(strict=False, **settings)  # type: ignore[arg-type]  # as of Bench
        self.asked_back: dict[RevokeReason, int] = dict.fromkeys(RevokeReason, 0)
        self.held: dict[LeaseId, SessionId] = {}

    def borrow_all(self, session: SessionId) -> None:
        """As many slabs as there are to be had; it says that it wants more than there is."""
        while True:
            try:
                lease_id = self.ask(session, nbytes=SIZE, wanted_bytes=GPU_BYTES)
            except RefusedForNow:
                return
            self.handle(SlabAllocated(lease_id=lease_id))
            self.held[lease_id] = session

    def give_back_all(self, session: SessionId) -> None:
        mine = [lease_id for lease_id, one in self.held.items() if one == session]
        if mine:
            self.release(session, *mine)
            self.free(mine)

    def live(self, *sessions: SessionId) -> None:
        """A step: keepalives, a tick, and the answers to what was asked back."""
        for session in sessions:
            mine = [lease_id for lease_id, one in self.held.items() if one == session]
            self.keepalive(session, *(use(lease_id) for lease_id in mine))
        self.now += STEP_SECONDS
        self.tick()
        self.answer()

    def own(self, nbytes: int) -> None:
        """The owner of NEAR uses so much."""
        self.report(NEAR, {50: nbytes})
        self.answer()

    def answer(self) -> None:
        for order in self.the(SendRevoke):
            self.asked_back[order.reason] += len(order.lease_ids)
            self.acknowledge(order.session_id, *order.lease_ids)
            self.free(order.lease_ids)

    def free(self, lease_ids: tuple[LeaseId, ...] | list[LeaseId]) -> None:
        for lease_id in lease_ids:
            assert self.state(lease_id) is LeaseState.FREEING
            self.freed(lease_id)
            del self.held[lease_id]


def is_up(step: int, period: float) -> bool:
    """A square wave: nothing rises faster."""
    return (step * STEP_SECONDS) % period < period / 2


def swing_an_owner(period: float, amplitude_bytes: int, settle_seconds: float) -> int:
    """How many slabs an owner asks for whose use swings by so much."""
    node = Swinging(settle_seconds=settle_seconds)
    session = node.open()
    low_bytes = 60 * MIB
    node.own(low_bytes)
    for step in range(int(SECONDS / STEP_SECONDS)):
        node.own(low_bytes + (0 if is_up(step, period) else amplitude_bytes))
        node.borrow_all(session)
        node.live(session)
    return node.asked_back[RevokeReason.RESERVE]


def most_slabs(amplitude_bytes: int, settle_seconds: float) -> int:
    """The bound for an owner."""
    a_rise = max(0, math.ceil((amplitude_bytes - RESERVE_BYTES / 2) / SIZE))
    return a_rise * (1 + math.floor(SECONDS / settle_seconds))


@pytest.mark.parametrize("period", PERIODS)
@pytest.mark.parametrize("amplitude_bytes", [8 * MIB, 40 * MIB, 130 * MIB])
def test_an_owner_that_swings_asks_for_a_bounded_number_of_slabs(
    period: float, amplitude_bytes: int
) -> None:
    """(A - reserve / 2) in whole slabs, 1 + T / S times, whatever the period."""
    moved = swing_an_owner(period, amplitude_bytes, SETTLE_SECONDS)
    assert moved <= most_slabs(amplitude_bytes, SETTLE_SECONDS)
    if (
        period / 2 < SETTLE_SECONDS
    ):  # it is never let go for long enough: once, and then never again
        assert moved <= most_slabs(amplitude_bytes, SECONDS + 1)


def test_the_bound_is_the_settle_times_doing() -> None:
    """Without one the same owner asks for more, so the bound can be missed."""
    moved = swing_an_owner(1.0, 130 * MIB, 0.0)
    assert moved > most_slabs(130 * MIB, SETTLE_SECONDS)


def swing_demand(period: float) -> int:
    """How many slabs are moved by choice to a tenant that wants its share and drops it again."""
    node = Swinging(rebalance_seconds=1.0)
    greedy = node.open("greedy", tenant=ALICE, pid=11)
    fickle = node.open("fickle", tenant=BOB, pid=12)
    for step in range(int(SECONDS / STEP_SECONDS)):
        node.borrow_all(greedy)
        if is_up(step, period):
            node.borrow_all(fickle)
        else:
            node.give_back_all(fickle)
        node.live(greedy, fickle)
    return node.asked_back[RevokeReason.REBALANCE]


@pytest.mark.parametrize("period", PERIODS)
def test_a_demand_that_swings_moves_a_bounded_number_of_slabs(period: float) -> None:
    """What is above a share, 1 + T / WANT_SECONDS times, whatever the period."""
    above_its_share = math.ceil(SLABS / 2)
    assert 0 < swing_demand(period) <= above_its_share * (1 + math.floor(SECONDS / WANT_SECONDS))


def test_a_rest_alone_bounds_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where wants are forgotten at once, no slab is moved twice within it; without it, many are."""
    monkeypatch.setattr(balancing, "WANT_SECONDS", 2 * STEP_SECONDS)
    most = SLABS * (1 + math.floor(SECONDS / REST_SECONDS))
    assert swing_demand(0.5) <= most
    monkeypatch.setattr(balancing, "REST_SECONDS", 0.0)
    assert swing_demand(0.5) > most
