"""One more, or a 429: past capacity an engine says so instead of stalling everybody."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aqua_client.scheduling import FairScheduler, FairSettings, Room
from tests.client.scheduling.engine import ITERATION_SECONDS, Engine

PATIENT = FairSettings(block_tokens=4, slice_iterations=4, patience_seconds=4.0)


def crowded(engine: Engine, requests: int) -> None:
    """Replies of 100 tokens, ten at a time, one token an iteration: ten seconds for 100."""
    for number in range(requests):
        engine.add(f"r{number}", prompt=8, reply=100)


def test_while_nobody_waits_everybody_is_taken() -> None:
    """However long replies take that all fit."""
    engine = Engine(PATIENT, blocks=1000, tokens=64)
    engine.add("long", prompt=8, reply=3000)
    engine.run(until=lambda: engine.now > 20)
    assert engine.scheduler.admit(engine.now, prompt_tokens=8).accepted


def test_once_nobody_waits_any_more_everybody_is_taken() -> None:
    """Though replies take longer than anybody has patience for: there is room."""
    engine = Engine(replace(PATIENT, patience_seconds=0.05), blocks=5000, tokens=64, seats=10)
    crowded(engine, 80)
    engine.run(until=lambda: engine.now > 6)
    assert not engine.scheduler.admit(engine.now, prompt_tokens=8).accepted
    engine.run(until=lambda: len(engine.jobs) < engine.seats)
    engine.step()
    assert engine.jobs
    assert engine.scheduler.admit(engine.now, prompt_tokens=8).accepted


def test_past_capacity_one_more_is_refused_until_there_is_room() -> None:
    """It says when to come back, and that is about when it is taken."""
    engine = Engine(PATIENT, blocks=5000, tokens=64, seats=10)
    crowded(engine, 150)
    assert engine.scheduler.admit(0.0, prompt_tokens=8).accepted  # nothing is known yet
    engine.run(until=lambda: engine.now > 6)
    answer = engine.scheduler.admit(engine.now, prompt_tokens=8)
    assert not answer.accepted
    assert answer.reason == "busy"
    assert answer.retry_after_seconds >= 1
    engine.run(until=lambda: engine.scheduler.admit(engine.now, prompt_tokens=8).accepted)
    waiting = len(engine.jobs) - engine.seats
    assert 0 < waiting < 50  # as many as are through in time


def test_what_is_refused_comes_back_in_time() -> None:
    """Retry-after is what the backlog takes beyond patience."""
    engine = Engine(PATIENT, blocks=5000, tokens=64, seats=10)
    crowded(engine, 250)
    engine.run(until=lambda: engine.now > 10)
    answer = engine.scheduler.admit(engine.now, prompt_tokens=8)
    tokens_left = 100 * len(engine.jobs)
    expected = tokens_left / engine.seats * ITERATION_SECONDS - PATIENT.patience_seconds
    assert answer.retry_after_seconds == pytest.approx(expected, rel=0.3)


def test_a_quiet_hour_is_no_pace() -> None:
    """What an engine was asked to do says not what it can: a small burst after it is taken."""
    engine = Engine(PATIENT, blocks=5000, tokens=64, seats=10)
    engine.add("alone", prompt=8, reply=2000)
    engine.run()
    crowded(engine, 30)  # three seconds' work
    engine.run(until=lambda: engine.now > 21)
    assert len(engine.jobs) > engine.seats
    assert engine.scheduler.admit(engine.now, prompt_tokens=8).accepted


def test_what_never_fits_is_refused_for_good() -> None:
    """No retry helps: the cache is smaller."""
    scheduler = FairScheduler(PATIENT)
    assert scheduler.admit(0.0, prompt_tokens=10_000).accepted  # the cache was never seen
    scheduler.plan(0.0, Room(tokens=64, free_blocks=10))
    assert scheduler.admit(0.0, prompt_tokens=40).accepted
    answer = scheduler.admit(0.0, prompt_tokens=41)
    assert (answer.accepted, answer.reason, answer.retry_after_seconds) == (False, "too_large", 0)


def test_an_idle_hour_says_nothing_of_the_pace() -> None:
    """Only time with work in it counts, whether plans are asked for meanwhile or not."""
    for asks in (True, False):
        engine = Engine(PATIENT, blocks=5000, tokens=64, seats=10)
        crowded(engine, 60)
        engine.run()
        before = engine.scheduler._turnover.seconds_for(100)
        if asks:
            engine.step()
        engine.now += 3600
        engine.add("late", prompt=8, reply=1)
        engine.step()
        assert engine.scheduler._turnover.seconds_for(100) == pytest.approx(before, rel=0.1)
        assert engine.scheduler._slices._iteration_seconds == pytest.approx(ITERATION_SECONDS)
