"""Keepalives of all sessions of a node come at few moments, and none comes late."""

from __future__ import annotations

import random

import pytest

from aqua_client.presence import KEEPALIVE_MOMENTS, next_moment

THIRD = 10.0 / 3


@pytest.mark.parametrize("now", [0.0, 1.0, 12_345.678, 4e6 + 0.1])
def test_a_keepalive_is_due_within_a_third_of_a_term_and_not_much_before(now: float) -> None:
    """The daemon counts on one each third."""
    seconds = next_moment(now, 3 * THIRD) - now
    assert THIRD * (1 - 1 / KEEPALIVE_MOMENTS) - 1e-6 <= seconds <= THIRD


def test_one_that_wakes_a_little_late_keeps_its_pace() -> None:
    """What passes between the moment and the sending is not added up."""
    first = next_moment(100.0, 3 * THIRD)
    at = first
    for _ in range(1000):
        at = next_moment(at + 0.003, 3 * THIRD)
    assert at == pytest.approx(first + 1000 * THIRD)


def test_many_sessions_share_few_moments() -> None:
    """Whenever each began: the daemon wakes so often at most."""
    chance = random.Random(7)  # noqa: S311 - no secret
    moments = {next_moment(1e5 + chance.uniform(0, THIRD), 3 * THIRD) for _ in range(1000)}
    assert len(moments) <= KEEPALIVE_MOMENTS + 1
