"""What fair scheduling is for, on an engine without a model: nobody starves, all get their share."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aqua_client.scheduling import FairSettings, Order, Swap
from tests.client.scheduling.engine import ITERATION_SECONDS, Engine

SLICE = 4
BLOCK = 4
PLAIN = FairSettings(
    block_tokens=BLOCK, slice_iterations=SLICE, order=Order.FAIR, ageing_tokens_per_second=0.0
)
FOR_EVER = 10**6  # tokens of a reply
MANY = 10**6


def settings_of(order: Order) -> FairSettings:
    return FairSettings(block_tokens=BLOCK, slice_iterations=SLICE, order=order)


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("kept", [None, 0], ids=["parked", "recomputed"])
@pytest.mark.parametrize(
    ("blocks", "tokens", "seats", "reads"),
    [(60, 400, 64, MANY), (60, 48, 64, MANY), (3000, 400, 4, MANY), (3000, 400, 64, 240)],
    ids=["few blocks", "few tokens", "few seats", "few reads"],
)
def test_nobody_starves_however_many_come(
    order: Order, kept: int | None, blocks: int, tokens: int, seats: int, reads: int
) -> None:
    """Newcomers without end: whoever was there before them ends all the same."""
    engine = Engine(
        settings_of(order),
        blocks=blocks,
        tokens=tokens,
        seats=seats,
        reads=reads,
        keeps=lambda _job: kept,
    )
    old = [f"old-{number}" for number in range(6)]
    for name in old:
        engine.add(name, prompt=40, reply=50)
    for number in range(1500):
        if not set(old) - set(engine.ended):
            break
        for twin in range(60 - len(engine.jobs)):  # always more than can be taken
            engine.add(f"new-{number}-{twin}", prompt=30, reply=SLICE)
        engine.step()
    assert set(old) <= set(engine.ended)
    turns = [time for name in old for time in pairwise(engine.ended[name].turns)]
    assert max(later - earlier for earlier, later in turns) < 500 * ITERATION_SECONDS


@pytest.mark.parametrize("order", Order)
def test_a_long_prompt_is_read_however_many_short_ones_come(order: Order) -> None:
    """Least progress first, but for the oldest."""
    engine = Engine(settings_of(order), blocks=200, tokens=32)
    engine.add("long", prompt=300, reply=1)
    for number in range(60):
        engine.add(f"new-{number}", prompt=30, reply=1)
        engine.step()
        if "long" in engine.ended:
            return
    pytest.fail("it has not been read")


def test_who_lost_what_it_had_is_read_again_however_many_come() -> None:
    """Newcomers do not take all of the batch's tokens from it."""
    engine = Engine(settings_of(Order.OLDEST), blocks=600, tokens=48, keeps=lambda _job: 0)
    engine.add("old", prompt=40, reply=50)
    engine.run(until=lambda: engine.jobs["old"].done_tokens >= SLICE)
    engine.resize(0)
    engine.step()
    assert engine.preemptions == 1
    engine.resize(600)
    for number in range(200):
        for twin in range(20 - len(engine.jobs)):
            engine.add(f"new-{number}-{twin}", prompt=30, reply=1)
        engine.step()
        if "old" in engine.ended:
            return
    pytest.fail("it has not been read")


@settings(max_examples=30, deadline=None)
@given(prompts=st.lists(st.integers(1, 40), min_size=2, max_size=8), blocks=st.integers(14, 40))
def test_equals_are_never_far_from_each_other(prompts: list[int], blocks: int) -> None:
    """Who came together has had as much as the others, but for two slices."""
    engine = Engine(PLAIN, blocks=blocks, tokens=400)
    for number, prompt in enumerate(prompts):
        engine.add(f"r{number}", prompt=prompt, reply=FOR_EVER)
    for _ in range(300):
        engine.step()
        most_tokens = max(job.known_tokens for job in engine.jobs.values())
        if PLAIN.blocks(most_tokens + SLICE) >= blocks:
            return  # the longest has outgrown the cache
        done = [job.done_tokens for job in engine.jobs.values()]
        assert max(done) - min(done) <= 2 * SLICE


def test_a_weight_is_a_share() -> None:
    """Three times the weight, three times the tokens."""
    engine = Engine(PLAIN, blocks=3000, tokens=400, seats=4)
    for number in range(8):
        engine.add(f"light-{number}", prompt=8, reply=FOR_EVER)
        engine.add(f"heavy-{number}", prompt=8, reply=FOR_EVER, weight=3.0)
    engine.run(until=lambda: engine.now > 2000 * ITERATION_SECONDS)
    done = {name: job.done_tokens for name, job in engine.jobs.items()}
    light = sum(tokens for name, tokens in done.items() if name.startswith("light"))
    assert 2.8 < (sum(done.values()) - light) / light < 3.2


def test_small_ones_do_not_pass_a_large_one_for_ever() -> None:
    """Their slices end one by one; until it fits, nobody begins another."""
    engine = Engine(PLAIN, blocks=60, tokens=400)
    for number in range(10):
        engine.add(f"small-{number}", prompt=16, reply=FOR_EVER)
        engine.step()
    engine.add("large", prompt=160, reply=SLICE)
    for _ in range(2 * SLICE):
        engine.step()
    assert engine.ended.keys() == {"large"} or engine.jobs["large"].done_tokens


def test_age_is_an_advance() -> None:
    """Who came ten seconds before is kept ahead by what ageing gives for them."""
    ageing = replace(PLAIN, ageing_tokens_per_second=20.0)
    engine = Engine(ageing, blocks=3000, tokens=400, seats=1)
    engine.add("old", prompt=8, reply=FOR_EVER)
    engine.run(until=lambda: engine.now > 10)
    engine.add("new", prompt=8, reply=FOR_EVER)
    before = engine.jobs["old"].done_tokens
    engine.run(until=lambda: engine.jobs["new"].done_tokens >= 100)
    ahead = engine.jobs["old"].done_tokens - before - 100
    assert abs(ahead - 20 * 10) <= 2 * SLICE


def test_a_burst_pushes_nobody_out_before_it_is_read() -> None:
    """Prompts that the batch has no tokens for wait outside."""
    engine = Engine(settings_of(Order.LEAST_SERVED), blocks=80, tokens=40)
    for number in range(7):
        engine.add(f"old-{number}", prompt=30, reply=FOR_EVER)
    engine.run(until=lambda: all(job.done_tokens >= SLICE for job in engine.jobs.values()))
    for number in range(20):
        engine.add(f"new-{number}", prompt=40, reply=FOR_EVER)
    assert len(engine.step().preempt) <= 2


def test_a_newcomer_starts_where_the_others_are() -> None:
    """It neither catches up on what they had before it came, nor waits until it is forgotten."""
    engine = Engine(PLAIN, blocks=3000, tokens=400, seats=2)
    for name in ("a", "b"):
        engine.add(name, prompt=8, reply=FOR_EVER)
    engine.run(until=lambda: engine.jobs["a"].done_tokens >= 500)
    engine.add("late", prompt=8, reply=FOR_EVER)
    before = engine.jobs["a"].done_tokens
    engine.run(until=lambda: engine.jobs["late"].done_tokens >= 200)
    gained = engine.jobs["a"].done_tokens - before
    assert abs(gained - 200) <= 2 * SLICE


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize(("blocks", "reads"), [(60, MANY), (3000, 240)], ids=["blocks", "reads"])
def test_a_newcomer_has_its_first_token_within_a_slice(
    order: Order, blocks: int, reads: int
) -> None:
    """However many wait for a turn."""
    engine = Engine(settings_of(order), blocks=blocks, tokens=256, reads=reads)
    for number in range(30):
        engine.add(f"old-{number}", prompt=40, reply=FOR_EVER)
    engine.run(until=lambda: all(job.done_tokens >= SLICE for job in engine.jobs.values()))
    for number in range(20):
        name = f"new-{number}"
        engine.add(name, prompt=40, reply=SLICE)
        for _ in range(SLICE + 1):
            engine.step()
        assert (engine.jobs.get(name) or engine.ended[name]).done_tokens >= 1
        engine.run(until=lambda name=name: name in engine.ended)  # type: ignore[misc]  # of now


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize(("blocks", "seats"), [(60, 64), (3000, 8)], ids=["blocks", "seats"])
def test_a_rush_has_its_first_tokens_sooner_and_ends_as_soon(
    order: Order, blocks: int, seats: int
) -> None:
    """Shorter first slices while more wait than may come in: the last waits half, little is lost."""
    firsts, ends = [], []
    for rush in (8, 2):
        chosen = FairSettings(
            block_tokens=BLOCK, slice_iterations=8, rush_slice_iterations=rush, order=order
        )
        engine = Engine(chosen, blocks=blocks, tokens=256, seats=seats)
        for number in range(40):
            engine.add(f"r{number}", prompt=8, reply=30)
        jobs = list(engine.jobs.values())
        engine.run(until=lambda jobs=jobs: all(job.done_tokens for job in jobs))  # type: ignore[misc]
        firsts.append(engine.now)
        engine.run()
        ends.append(engine.now)
    assert firsts[1] < 0.6 * firsts[0]
    assert ends[1] <= 1.15 * ends[0]


@pytest.mark.parametrize(("many", "prompt", "kept"), [(1, 60, 8), (2, 8, 8), (12, 8, 2)])
def test_newcomers_have_whole_slices_unless_they_are_too_many(
    many: int, prompt: int, kept: int
) -> None:
    """One that is larger than the newcomers' share keeps nobody waiting, and has a whole one, too."""
    chosen = FairSettings(block_tokens=BLOCK, slice_iterations=8, rush_slice_iterations=2)
    engine = Engine(chosen, blocks=24, tokens=256)
    for number in range(many):
        engine.add(f"r{number}", prompt=prompt, reply=FOR_EVER)
    engine.step()
    assert {one.slice_left for one in engine.scheduler.requests.values()} <= {kept - 1, 0}
    assert engine.scheduler.requests["r0"].slice_left == kept - 1


@pytest.mark.parametrize("order", Order)
def test_who_is_in_the_cache_computes(order: Order) -> None:
    """A resident idles only for want of blocks or tokens; nothing that fits waits outside."""
    chance = random.Random(3)  # noqa: S311 - a story that repeats, no secret
    engine = Engine(settings_of(order), blocks=50, tokens=64)
    for number in range(400):
        if chance.random() < 0.2:
            engine.add(f"r{number}", chance.randint(1, 60), chance.randint(1, 30))
        plan = engine.step()
        ran = {share.request_id for share in plan.run}
        idle = [job for name, job in engine.jobs.items() if name not in ran]
        if not idle or sum(share.tokens for share in plan.run) == engine.tokens:
            continue
        promised = len(ran) * (engine.settings.blocks(SLICE) + 1)  # to what is left of slices
        spare = engine.spare_blocks - promised
        for job in (one for one in idle if one.held_blocks):
            assert engine.settings.blocks(job.known_tokens) - job.held_blocks > spare
        needed = [engine.settings.blocks(job.known_tokens + SLICE) for job in idle]
        assert sum(needed) > spare


@pytest.mark.parametrize("share", [0.03, 0.1])
def test_swaps_cost_no_more_than_their_share(share: float) -> None:
    """The dearer a swap, the longer a slice: no longer than it must be."""
    swap = Swap(bytes_per_token=1000, store_bytes_per_second=133e6, fetch_bytes_per_second=133e6)
    chosen = FairSettings(
        block_tokens=BLOCK,
        slice_iterations=2,
        longest_slice_iterations=10_000,
        order=Order.FAIR,
        ageing_tokens_per_second=0.0,
        swap_share=share,
    )
    engine = Engine(chosen, blocks=2200, tokens=8192, swap=swap)
    for number in range(12):
        engine.add(f"r{number}", prompt=2000, reply=FOR_EVER)
    engine.run(until=lambda: all(job.done_tokens >= 4 for job in engine.jobs.values()))
    engine.swap_seconds, begin = 0.0, engine.now
    preempted = engine.preemptions
    engine.run(until=lambda: engine.now > begin + 3000 * ITERATION_SECONDS)
    assert engine.preemptions > preempted + 5
    assert 0.5 * share * (engine.now - begin) < engine.swap_seconds <= share * (engine.now - begin)


def test_a_newcomers_slice_is_the_shortest_however_dear_a_swap() -> None:
    """It is what others wait by for their first token; all later slices are as long as it takes."""
    swap = Swap(bytes_per_token=1000, store_bytes_per_second=1e6, fetch_bytes_per_second=1e6)
    engine = Engine(settings_of(Order.OLDEST), blocks=40, tokens=256, swap=swap)
    for number in range(3):
        engine.add(f"old-{number}", prompt=8, reply=FOR_EVER)
    engine.run(until=lambda: all(job.done_tokens > SLICE for job in engine.jobs.values()))
    engine.add("new", prompt=8, reply=FOR_EVER)
    engine.step()
    lengths = {name: one.slice_left for name, one in engine.scheduler.requests.items()}
    assert lengths.pop("new") == SLICE - 1
    assert min(lengths.values()) > 10 * SLICE


def test_a_swap_that_no_slice_pays_for_has_the_longest_slice() -> None:
    """A request grows while it runs: where its swap grows by more than it earns, none is enough."""
    hopeless = Swap(bytes_per_token=1000, store_bytes_per_second=1e4, fetch_bytes_per_second=1e4)
    engine = Engine(settings_of(Order.OLDEST), blocks=400, tokens=256, swap=hopeless)
    engine.add("a", prompt=8, reply=FOR_EVER)
    longest = engine.settings.longest_slice_iterations
    engine.run(until=lambda: engine.jobs["a"].done_tokens > SLICE, most=SLICE + 2)
    assert longest - 2 <= engine.scheduler.requests["a"].slice_left <= longest


@pytest.mark.parametrize("order", Order)
def test_a_long_slice_keeps_no_blocks_empty(order: Order) -> None:
    """Where swaps are dear, the cache is as full as where they are not: it takes as long."""
    swap = Swap(bytes_per_token=1000, store_bytes_per_second=25e6, fetch_bytes_per_second=25e6)
    iterations = []
    for one in (None, swap):
        engine = Engine(settings_of(order), blocks=60, tokens=256, swap=one)
        for number in range(24):
            engine.add(f"r{number}", prompt=8, reply=40)
        engine.run()
        iterations.append(engine.now / ITERATION_SECONDS)
    assert iterations[1] <= 1.1 * iterations[0]
