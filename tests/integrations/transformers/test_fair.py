"""Fair slices in the engine: everybody comes in soon, and says what `generate` says."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

import aqua_client
from aqua_client.integrations.transformers import attach
from aqua_client.integrations.transformers.engine import processor_of
from aqua_client.scheduling import FairSettings
from tests.integrations.transformers.engines import (
    BLOCK_BYTES,
    answers,
    ask,
    batching,
    blocks_in_use,
    expected,
    manager_of,
    prompts,
    results,
    run_to_end,
    run_until,
    said,
    sampled,
    started,
    step,
)
from tests.integrations.transformers.watched_pools import ComparingPools, LaggingPools
from tests.nodes import MIB, wait_until

ASKED = prompts(6)
SHORT = FairSettings(slice_iterations=4, longest_slice_iterations=4)


def test_everybody_is_answered_right_while_taking_turns(client: aqua_client.Client) -> None:
    """In the engine's own thread, with slices as long as swaps make them."""
    manager = manager_of(batching(scheduler_type="aqua_fair"))
    with closing(attach(manager, client=client)) as paging, started(manager):
        assert answers(manager, ASKED) == [expected(one) for one in ASKED]
        assert paging.stats()["restored"] >= 3
        swap = processor_of(manager).scheduler._policy._slices._swap  # type: ignore[attr-defined]
    assert swap is not None
    assert swap.bytes_per_token == BLOCK_BYTES // 16
    wait_until(lambda: client.stats()["peer_bytes"] == 0, what="everything is given back")


@pytest.mark.parametrize(("scheduler", "is_fair"), [("aqua_fair", True), ("fifo", False)])
def test_nobody_waits_for_others_to_end(
    client: aqua_client.Client, scheduler: str, *, is_fair: bool
) -> None:
    """In a cache for two all six have spoken before one has ended; first come, first served not."""
    manager = manager_of(batching(scheduler_type=scheduler))
    with closing(attach(manager, client=client, fair=SHORT if is_fair else None)):
        ask(manager, ASKED)
        run_until(manager, lambda: not manager.output_router.output_queue.empty())
        assert manager.batch_processor is not None
        scheduler_ = manager.batch_processor.scheduler
        left = [*scheduler_.active_requests.values(), *scheduler_.waiting_requests.values()]
        have_spoken = [bool(state.generated_tokens) for state in left]
        assert all(have_spoken) == is_fair
        first = results(manager)
        assert said(first | run_to_end(manager)) == [expected(one) for one in ASKED]


def test_a_long_prompt_is_read_however_many_short_ones_come(client: aqua_client.Client) -> None:
    """A batch's tokens are given out as planned: half of them to the oldest, the rest to the short."""
    long, *short = prompts(1, 300) + prompts(40, 30)
    manager = manager_of(batching(blocks=64, scheduler_type="aqua_fair"))
    with closing(attach(manager, client=client)):
        (first,) = ask(manager, [long], most=4)
        for pair in range(20):  # as many tokens as a batch may have
            ask(manager, short[2 * pair : 2 * pair + 2], most=1)
            step(manager)
        found = results(manager)
        assert found[first].generated_tokens == expected(long, 4)
        assert len(found) > 10
        found |= run_to_end(manager)
        assert said(found)[1:] == [expected(one, 1) for one in short]


def test_a_newcomer_is_read_however_much_the_others_share(client: aqua_client.Client) -> None:
    """What fits into the cache once, as a shared prefix, is more than a batch can read for each."""
    shared, other = prompts(2, 64)
    stranger, asked = other[:40], [[*shared, *tail[:5]] for tail in ASKED]
    manager = manager_of(batching(blocks=16, scheduler_type="aqua_fair"))
    with closing(attach(manager, client=client, fair=SHORT)) as paging:
        ask(manager, asked[:1], most=2)
        run_to_end(manager)
        ask(manager, asked)
        scheduler = paging.scheduler
        run_until(manager, lambda: scheduler.active_requests and not scheduler.waiting_requests)
        ask(manager, [stranger], most=8)
        run_until(manager, lambda: not manager.output_router.output_queue.empty())
        (first,) = results(manager).values()
        assert first.generated_tokens == expected(stranger, 8)
        assert said(run_to_end(manager)) == [expected(one) for one in asked]


def test_who_comes_next_is_brought_near_before_its_turn(client: aqua_client.Client) -> None:
    """Another thread reads it while the model computes; what is said stays the same."""
    pools = ComparingPools(client)
    read_by_engine: dict[int, int] = {}
    for ahead_bytes in (0, 64 * MIB):
        pools.read_bytes.clear()
        manager = manager_of(batching(scheduler_type="aqua_fair"))
        with closing(attach(manager, client=pools, fair=SHORT, ahead_bytes=ahead_bytes)) as paging:
            ask(manager, ASKED)
            found = run_to_end(manager, each_step=paging.finish_writing)
            assert said(found) == [expected(one) for one in ASKED]
            done = paging.stats()
        read_by_engine[ahead_bytes] = pools.read_bytes[threading.current_thread().name]
        assert (done["brought_ahead"] > 0) == (ahead_bytes > 0)
    assert read_by_engine[64 * MIB] < read_by_engine[0] / 2


def test_nothing_is_brought_near_for_which_there_is_no_room(client: aqua_client.Client) -> None:
    """What is beside the cache is bounded: of too large a request nothing is read ahead."""
    manager = manager_of(batching(scheduler_type="aqua_fair"))
    with closing(attach(manager, client=client, fair=SHORT, ahead_bytes=BLOCK_BYTES - 1)) as paging:
        ask(manager, ASKED)
        assert said(run_to_end(manager)) == [expected(one) for one in ASKED]
        assert paging.stats()["restored"] >= 3
        assert paging.stats()["brought_ahead"] == 0


@pytest.mark.parametrize("lags", [False, True])
def test_forks_and_shared_prefixes_take_turns(client: aqua_client.Client, *, lags: bool) -> None:
    """Blocks that the engine gives by itself confuse nobody, also where what is written is late."""
    shared = prompts(1, 32)[0]
    asked = [[*shared, *tail[:6]] for tail in ASKED[:3]]
    manager = manager_of(batching(blocks=10, scheduler_type="aqua_fair"), sampled(3))
    pools = LaggingPools(client, lambda: blocks_in_use(manager))
    with closing(attach(manager, client=pools if lags else client, fair=SHORT)) as paging:
        ids = ask(manager, asked[:1], most=2)
        run_to_end(manager)
        ids = ask(manager, asked, most=24)
        found = run_to_end(manager, each_step=pools.stepped)
        assert len(found) == 9
        assert paging.stats()["restored"] >= 1
        for one, question in zip(ids, asked, strict=True):
            forks = [found[f"{one}__child#{index}"] for index in range(2)]
            answers_ = [fork.generated_tokens for fork in (found[one], *forks)]
            assert answers_ == [expected(question, 24)] * 3
        assert pools.loaded_strays == 0


def test_a_cancelled_request_gives_back_what_it_has_parked(client: aqua_client.Client) -> None:
    """Its turn comes no more, its memory is given back, and the others are answered right."""
    manager = manager_of(batching(scheduler_type="aqua_fair"))
    with closing(attach(manager, client=client, fair=SHORT)) as paging:
        ids = ask(manager, ASKED)
        run_until(manager, lambda: paging.stats()["parked_now"])
        (victim, *_) = paging.parked
        manager.cancel_request(victim)
        found = run_to_end(manager)
        assert set(found) == {*ids} - {victim}
        right = [expected(asked) for one, asked in zip(ids, ASKED, strict=True) if one != victim]
        assert said(found) == right
        wait_until(lambda: client.stats()["peer_bytes"] == 0, what="everything is given back")


@pytest.mark.parametrize(("prompt_tokens", "most"), [(150, 10), (20, 150)])
def test_what_can_never_fit_is_ended_and_the_others_go_on(
    client: aqua_client.Client, prompt_tokens: int, most: int
) -> None:
    """A request that is or grows larger than the whole cache fails, with both figures."""
    manager = manager_of(batching(scheduler_type="aqua_fair"))
    with closing(attach(manager, client=client, fair=SHORT)):
        (large,) = ask(manager, prompts(1, prompt_tokens), most=most)
        ask(manager, ASKED[1:])
        found = run_to_end(manager)
        failed = found.pop(large)
        assert failed.error is not None
        assert "do not fit the KV cache, which holds 128" in failed.error
        assert said(found) == [expected(one) for one in ASKED[1:]]
        wait_until(lambda: client.stats()["peer_bytes"] == 0, what="everything is given back")


def test_without_paging_there_are_no_turns() -> None:
    """The engine says so instead of computing everything again and again."""
    manager = manager_of(batching(scheduler_type="aqua_fair"))
    processor_of(manager)
    ask(manager, ASKED[:1])
    with pytest.raises(aqua_client.InvalidRequest, match=r"needs attach\(manager\)"):
        step(manager)
