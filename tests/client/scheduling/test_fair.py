"""What a plan promises, in histories by hand and by chance."""

from __future__ import annotations

import doctest
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aqua_client.errors import InvalidRequest, InvalidSetting
from aqua_client.scheduling import FairScheduler, FairSettings, Order, Room, Share, fair
from tests.client.scheduling.engine import Engine, Job

SMALL = FairSettings(block_tokens=4, slice_iterations=3)


def keep_all(_job: Job) -> int | None:
    return None


def keep_some(job: Job) -> int | None:
    return job.kv_tokens // 8 * 8


def test_the_example_is_true() -> None:
    """The docstring's lines do what they say."""
    assert doctest.testmod(fair).failed == 0


def test_decodes_come_first_and_prefills_share_what_is_left() -> None:
    """A long prompt is cut into chunks, behind those that decode; half of it goes to the oldest."""
    engine = Engine(SMALL, blocks=100, tokens=16)
    engine.add("short", prompt=10, reply=9)
    engine.step()
    engine.add("long", prompt=40, reply=2)
    assert engine.step().run == (
        Share(request_id="short", tokens=1),
        Share(request_id="long", tokens=15),
    )
    engine.add("later", prompt=20, reply=2)
    assert engine.step().run == (
        Share(request_id="short", tokens=1),
        Share(request_id="later", tokens=7),
        Share(request_id="long", tokens=8),
    )


@pytest.mark.parametrize("order", Order)
def test_a_newcomer_is_let_in_when_a_slice_has_ended(order: Order) -> None:
    """Who had a full slice goes for it, and comes back afterwards."""
    engine = Engine(
        FairSettings(block_tokens=4, slice_iterations=3, order=order), blocks=12, tokens=64
    )
    engine.add("first", prompt=38, reply=5)
    engine.step()
    engine.add("second", prompt=12, reply=4)
    assert [engine.step().preempt for _ in range(3)] == [(), (), ("first",)]
    engine.run()
    assert len(engine.ended["second"].turns) == 4
    assert engine.preemptions >= 1


def test_nobody_is_preempted_while_all_fit() -> None:
    """Slices end, and nothing happens."""
    engine = Engine(SMALL, blocks=100)
    for number in range(5):
        engine.add(f"r{number}", prompt=8, reply=50)
    engine.run()
    assert engine.preemptions == 0


def test_nobody_goes_whose_blocks_nobody_needs() -> None:
    """Where only seats are short, whoever gives up its own keeps its blocks, to the last free one."""
    engine = Engine(SMALL, blocks=6, seats=1)
    engine.add("first", prompt=8, reply=9)
    for _ in range(3):
        engine.step()
    engine.add("second", prompt=8, reply=2)
    plan = engine.step()
    assert [share.request_id for share in plan.run] == ["second"]
    assert plan.preempt == ()
    engine.run()
    assert engine.preemptions == 0


def test_those_who_come_next_are_named_in_order() -> None:
    """The oldest of the parked first, and nobody who is let in now."""
    chosen = FairSettings(block_tokens=4, slice_iterations=3, order=Order.OLDEST)
    engine = Engine(chosen, blocks=8, tokens=64)
    for number in range(20):
        engine.add(f"r{number}", prompt=8, reply=30)
    named = [engine.step().soon for _ in range(100)][-1]
    assert 2 <= len(named) <= 8
    assert list(named) == sorted(named)


def test_what_can_never_fit_is_named() -> None:
    """It keeps nobody else from running."""
    engine = Engine(SMALL, blocks=4)
    engine.add("huge", prompt=17, reply=1)
    engine.add("small", prompt=4, reply=4)
    assert engine.step().too_large == ("huge",)
    engine.run(until=lambda: "small" in engine.ended, most=10)


def test_who_fills_the_cache_alone_runs_to_its_last_block() -> None:
    """A slice is no longer than there are blocks for."""
    engine = Engine(SMALL, blocks=4)
    engine.add("large", prompt=15, reply=2)
    engine.run(most=3)


def test_a_plan_changes_nothing() -> None:
    """Asked twice, it says the same."""
    scheduler = FairScheduler(SMALL)
    for name in ("a", "b", "c"):
        scheduler.add(name, prompt_tokens=8, now=0.0)
    room = Room(tokens=64, free_blocks=5)
    assert scheduler.plan(0.0, room) == scheduler.plan(0.0, room)


def test_a_prefix_that_is_found_is_not_computed() -> None:
    """`holds` says what the cache has."""
    scheduler = FairScheduler(SMALL)
    scheduler.add("a", prompt_tokens=30, now=0.0)
    scheduler.holds("a", kv_tokens=20)
    (share,) = scheduler.plan(0.0, Room(tokens=64, free_blocks=50)).run
    assert share.tokens == 10


def test_what_can_not_be_is_refused() -> None:
    """With the figures, and without any effect."""
    scheduler = FairScheduler(SMALL)
    scheduler.add("a", prompt_tokens=3, now=0.0)
    with pytest.raises(InvalidRequest, match="added already"):
        scheduler.add("a", prompt_tokens=3, now=0.0)
    with pytest.raises(InvalidRequest, match="weight"):
        scheduler.add("b", prompt_tokens=3, now=0.0, weight=0.0)
    with pytest.raises(InvalidRequest, match="lacks 3"):
        scheduler.ran("a", 4)
    with pytest.raises(InvalidRequest, match="knows 3"):
        scheduler.holds("a", kv_tokens=3)
    with pytest.raises(InvalidRequest, match="no request 'b'"):
        scheduler.preempted("b")
    scheduler.remove("b")
    assert set(scheduler.requests) == {"a"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_tokens": 0},
        {"slice_iterations": 0},
        {"rush_slice_iterations": 0},
        {"slice_iterations": 9, "longest_slice_iterations": 8},
        {"ageing_tokens_per_second": -1.0},
        {"prompt_token_cost": float("inf")},
        {"swap_share": 0.0},
        {"newcomer_share": 0.0},
        {"newcomer_share": 1.5},
        {"patience_seconds": 0.0},
    ],
)
def test_a_setting_that_can_not_be_is_named(wrong: dict[str, float]) -> None:
    """The error says what is allowed."""
    with pytest.raises(InvalidSetting, match=list(wrong)[-1]):
        FairSettings(**wrong)  # type: ignore[arg-type]  # wrong on purpose


@settings(max_examples=60, deadline=None)
@given(data=st.data(), order=st.sampled_from(Order), keeps=st.sampled_from([keep_all, keep_some]))
def test_any_history_keeps_what_plans_promise(
    data: st.DataObject, order: Order, keeps: Callable[[Job], int | None]
) -> None:
    """Requests come, are cancelled, the cache shrinks and grows: every plan fits, and all end."""
    chosen = FairSettings(
        block_tokens=4, slice_iterations=data.draw(st.integers(1, 6)), order=order
    )
    tokens, reads = data.draw(st.integers(1, 70)), data.draw(st.sampled_from([112, 160, 10**6]))
    engine = Engine(chosen, blocks=40, tokens=tokens, seats=5, reads=reads, keeps=keeps)
    for number in range(data.draw(st.integers(1, 12))):
        prompt, reply = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 30))
        engine.add(f"r{number}", prompt, reply, weight=data.draw(st.sampled_from([0.5, 1, 3])))
        for _ in range(data.draw(st.integers(0, 9))):
            engine.step()
        doomed: list[str] = data.draw(
            st.lists(st.sampled_from(sorted(engine.jobs) or [""]), max_size=1)
        )
        for name in doomed:
            if name in engine.jobs:
                engine.cancel(name)
        engine.resize(data.draw(st.integers(28, 48)))
    engine.run(most=20_000)
