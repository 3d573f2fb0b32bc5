"""The next slab is due while use grows steadily and room runs out, and at no other time."""

from __future__ import annotations

from aqua_client.growth import (
    HORIZON_SECONDS,
    LEAST_RISES,
    REFUSED_SECONDS,
    UNUSED_SECONDS,
    WINDOW_SECONDS,
    Growth,
)

MIB = 2**20


def grown(*, step_bytes: int = MIB, free_bytes: int = MIB) -> tuple[Growth, float]:
    """One that has seen steady growth for some seconds, and when it looked last."""
    growth, now = Growth(), 0.0
    for count in range(2 * LEAST_RISES):
        now = count * 0.5
        growth.look(used_bytes=count * step_bytes, free_bytes=free_bytes, now=now)
    return growth, now


def test_steady_growth_is_due() -> None:
    """When what is free would be full soon at that pace."""
    growth, now = grown()
    assert growth.is_due(now=now)
    pace = 2 * MIB
    growth.look(used_bytes=5 * MIB, free_bytes=int(pace * HORIZON_SECONDS) + MIB, now=now)
    assert not growth.is_due(now=now)


def test_one_burst_is_no_growth() -> None:
    """However large: it may be all that this process ever parks."""
    growth = Growth()
    growth.look(used_bytes=0, free_bytes=4 * MIB, now=0.0)
    for look in range(20):
        growth.look(used_bytes=4 * MIB, free_bytes=0, now=look * 0.5)
        assert not growth.is_due(now=look * 0.5)


def test_growth_within_a_moment_is_a_burst() -> None:
    """A busy machine may look at it many times."""
    growth = Growth()
    for look in range(100):
        now = look * 0.019
        growth.look(used_bytes=look * MIB, free_bytes=0, now=now)
        assert not growth.is_due(now=now)


def test_parking_and_releasing_for_ever_is_no_growth() -> None:
    """The same bytes go up and down."""
    growth = Growth()
    for look in range(100):
        used = (look % 3) * MIB
        growth.look(used_bytes=used, free_bytes=0, now=look * 0.5)
        assert not growth.is_due(now=look * 0.5)


def test_slow_growth_is_not_due_before_the_end() -> None:
    """Or the slab would go back idle, and come again, for ever."""
    growth, now = grown(step_bytes=4096, free_bytes=MIB)
    assert not growth.is_due(now=now)
    growth.look(used_bytes=MIB, free_bytes=4096, now=now)
    assert growth.is_due(now=now)


def test_growth_that_has_ended_is_forgotten() -> None:
    """What grew long ago says nothing of now."""
    growth, now = grown()
    now += WINDOW_SECONDS + 1
    growth.look(used_bytes=5 * MIB, free_bytes=MIB, now=now)
    assert not growth.is_due(now=now)


def test_what_was_refused_or_unused_is_left_alone_for_a_while() -> None:
    """Others need the room, or nobody does."""
    for note, seconds in ((Growth.refused, REFUSED_SECONDS), (Growth.unused, UNUSED_SECONDS)):
        growth, now = grown()
        note(growth, now=now)
        for look in range(1, 200):
            at, grown_bytes = now + look * 0.5, (look + 10) * MIB
            growth.look(used_bytes=grown_bytes, free_bytes=MIB, now=at)
            assert growth.is_due(now=at) == (at >= now + seconds)
