"""Counters: plain ints by name."""

from __future__ import annotations

from dataclasses import fields

from aqua_client.counters import Counters


def test_everything_begins_at_nothing() -> None:
    """A new client has done nothing, and says so of every count."""
    snapshot = Counters().snapshot()
    assert set(snapshot) == {one.name for one in fields(Counters)}
    assert all(not value for value in snapshot.values())


def test_reasons_are_counted_apart() -> None:
    """Each reason has its own count."""
    counters = Counters()
    for reason in ("no_room", "breaker", "no_room"):
        counters.count_fallback(reason)
    counters.count_call_failure("timeout")
    assert counters.fallbacks == {"no_room": 2, "breaker": 1}
    assert counters.call_failures == {"timeout": 1}


def test_a_snapshot_does_not_move() -> None:
    """What was shown stays as it was."""
    counters = Counters()
    counters.offloads += 1
    counters.count_fallback("no_room")
    before = counters.snapshot()
    counters.offloads += 1
    counters.count_fallback("no_room")
    assert before["offloads"] == 1
    assert before["fallbacks"] == {"no_room": 1}
