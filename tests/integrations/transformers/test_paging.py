"""KV caches paged to leases: what is said is what `generate` says, and every byte comes back."""

from __future__ import annotations

from contextlib import closing

import pytest

import aqua_client
from aqua_client.errors import InsufficientMemory
from aqua_client.integrations.transformers import attach
from aqua_client.integrations.transformers.telling import Telling
from tests.fakes.clock import FakeClock
from tests.integrations.transformers.engines import (
    BLOCK_BYTES,
    PAGE_TOKENS,
    answers,
    ask,
    batching,
    expected,
    manager_of,
    prompts,
    run_to_end,
    run_until,
    said,
    sampled,
    started,
)
from tests.integrations.transformers.watched_pools import (
    ComparingPools,
    LosingPools,
    SpoilingPools,
)
from tests.nodes import MIB, running_node, wait_until

ASKED = prompts(6)


@pytest.mark.parametrize("write_through", [True, False])
def test_requests_that_give_way_say_the_same(
    client: aqua_client.Client, *, write_through: bool
) -> None:
    """Six requests in a cache for two: they take turns by way of leases, and nothing is left there."""
    manager = manager_of(batching())
    paging = attach(manager, client=client, write_through=write_through)
    with started(manager):
        assert answers(manager, ASKED) == [expected(one) for one in ASKED]
        done = paging.stats()
        assert done["parked"] == done["restored"] >= 3
        assert done["recomputed"] == done["parked_now"] == 0
        assert (done["written_ahead_bytes"] > 0) == write_through
    paging.close()
    stats = client.stats()
    assert stats["peer_out_bytes"] == done["written_ahead_bytes"] + done["tail_bytes"]
    assert stats["peer_in_bytes"] == done["restored_bytes"]
    wait_until(lambda: client.stats()["peer_bytes"] == 0, what="everything is given back")


def test_only_the_tail_is_copied_while_a_request_gives_way(client: aqua_client.Client) -> None:
    """Full blocks were written before: one block at most is left of each, instead of three."""
    done = {}
    for write_through in (True, False):
        manager = manager_of(batching())
        with closing(attach(manager, client=client, write_through=write_through)) as paging:
            ask(manager, ASKED)
            run_to_end(manager)
            done[write_through] = paging.stats()
    assert done[True]["parked"] == done[False]["parked"] >= 3
    assert (
        done[True]["restored_bytes"] == done[False]["restored_bytes"] == done[False]["tail_bytes"]
    )
    assert done[False]["tail_bytes"] >= 2 * BLOCK_BYTES * done[False]["parked"]
    assert done[True]["tail_bytes"] <= BLOCK_BYTES * done[True]["parked"]


def test_what_came_back_and_will_be_written_to_is_stored_no_longer(
    client: aqua_client.Client,
) -> None:
    """Where all of a request is its tail nothing is left in leases while it is in the cache."""
    manager = manager_of(batching())
    with closing(attach(manager, client=client, write_through=False)) as paging:
        ask(manager, ASKED[:3])
        run_until(manager, lambda: paging.stats()["parked_now"])
        assert client.stats()["peer_bytes"]
        run_until(manager, lambda: not paging.stats()["parked_now"])
        assert paging.scheduler.active_requests
        wait_until(lambda: client.stats()["peer_bytes"] == 0, what="the copies are given back")
        run_to_end(manager)


def test_every_byte_comes_back_where_it_is_looked_for(client: aqua_client.Client) -> None:
    """What is loaded into a block is what was in the block that was stored."""
    pools = ComparingPools(client)
    manager = manager_of(batching())
    with closing(attach(manager, client=pools)) as paging:
        ask(manager, ASKED)
        found = run_to_end(manager)
        assert said(found) == [expected(one) for one in ASKED]
        assert pools.compared_bytes == paging.stats()["restored_bytes"] > 0


def test_a_wrong_byte_would_be_heard(client: aqua_client.Client) -> None:
    """Answers depend on what was parked: equal ones prove something."""
    manager = manager_of(batching())
    with closing(attach(manager, client=SpoilingPools(client))):
        ask(manager, ASKED)
        assert said(run_to_end(manager)) != [expected(one) for one in ASKED]


def test_a_cancelled_request_gives_back_what_it_has_parked(client: aqua_client.Client) -> None:
    """Cancelled while parked, nothing of it is left in leases; the others say what they should."""
    manager = manager_of(batching())
    with closing(attach(manager, client=client)) as paging:
        ids = ask(manager, ASKED)
        run_until(manager, lambda: paging.stats()["parked_now"])
        (victim, *_) = paging.parked
        manager.cancel_request(victim)
        found = run_to_end(manager)
        assert {one: found[one].generated_tokens for one in ids if one != victim} == {
            one: expected(asked) for one, asked in zip(ids, ASKED, strict=True) if one != victim
        }
        assert victim not in found
        wait_until(lambda: client.stats()["peer_bytes"] == 0, what="everything is given back")


def test_shared_prefixes_and_paging_go_together(client: aqua_client.Client) -> None:
    """Requests with a common beginning share its blocks, give way, come back, and say the same."""
    shared = prompts(1, 2 * PAGE_TOKENS)[0]
    asked = [[*shared, *tail[:6]] for tail in ASKED]
    manager = manager_of(batching(blocks=10))
    with closing(attach(manager, client=client)) as paging:
        ask(manager, asked[:1], most=2)
        run_to_end(manager)
        ask(manager, asked, most=24)
        found = run_to_end(manager)
        assert said(found) == [expected(one, 24) for one in asked]
        assert paging.stats()["restored"] >= 1


def test_parallel_sampling_and_paging_go_together(client: aqua_client.Client) -> None:
    """Three answers to each question, forked from one prefill, and every fork can give way."""
    manager = manager_of(batching(blocks=10), sampled(3))
    with closing(attach(manager, client=client)) as paging:
        ids = ask(manager, ASKED[:3])
        found = run_to_end(manager)
        assert paging.stats()["restored"] >= 1
        assert len(found) == 9
        for one, asked in zip(ids, ASKED, strict=False):
            forks = [found[f"{one}__child#{index}"] for index in range(2)]
            assert [fork.generated_tokens for fork in (found[one], *forks)] == [expected(asked)] * 3


def test_a_sliding_window_comes_back_whole(client: aqua_client.Client) -> None:
    """Its blocks are written to again, so none is written ahead, and all are copied each time."""
    asked = [one[:8] for one in ASKED]
    manager = manager_of(batching(blocks=4), sliding_window=24)
    with closing(attach(manager, client=client)) as paging:
        ask(manager, asked)
        found = run_to_end(manager)
        assert said(found) == [expected(one, sliding_window=24) for one in asked]
        assert paging.stats()["restored"] >= 1
        assert paging.stats()["written_ahead_bytes"] == 0


@pytest.mark.parametrize("scheduler", ["fifo", "aqua_fair"])
def test_where_nothing_is_to_be_parked_all_are_computed_again_and_no_byte_is_copied(
    client: aqua_client.Client, caplog: pytest.LogCaptureFixture, scheduler: str
) -> None:
    """It was asked for: what is said is the same, and nobody is warned."""
    manager = manager_of(batching(scheduler_type=scheduler))
    with closing(attach(manager, client=client, parks=False)) as paging:
        ask(manager, ASKED)
        assert said(run_to_end(manager)) == [expected(one) for one in ASKED]
        done = paging.stats()
        assert done.pop("recomputed") >= 3
        assert not any(done.values())
    assert not client.stats()["peer_out_bytes"]
    assert caplog.messages == []


def test_a_node_without_room_is_told_of_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """The first at once, with the reason; then how many there were since."""
    clock = FakeClock()
    telling = Telling(clock)
    for number in range(100):
        telling.computed_again(f"req_{number}", InsufficientMemory("no room for 4096 bytes"))
    (first,) = caplog.messages
    assert first.startswith("request req_0 is computed again: no room for 4096 bytes")
    clock.advance(60)
    for number in range(100, 200):
        telling.computed_again(f"req_{number}", InsufficientMemory("still none"))
    assert caplog.messages[1:] == [
        "100 requests more are computed again since 60 s ago, the last is req_100: still none"
    ]


def test_without_room_anywhere_a_request_is_computed_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where nothing can be parked all is said as it should be, and that is counted."""
    with (
        aqua_client.connect(socket="/nonexistent/aqua.sock", fallback="error") as nowhere,
        closing(attach(manager := manager_of(batching()), client=nowhere)) as paging,
    ):
        ask(manager, ASKED)
        assert said(run_to_end(manager)) == [expected(one) for one in ASKED]
        assert paging.stats()["recomputed"] >= 3
        assert paging.stats()["restored"] == 0
        assert ["computed again" in message for message in caplog.messages].count(True) == 1


@pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning")
def test_owners_that_grow_move_what_is_parked() -> None:
    """Both lenders take all of theirs back while requests are parked there; nobody hears of it."""
    with (
        running_node(gpus=3, gpu_bytes=32 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
        closing(attach(manager := manager_of(batching()), client=client)) as paging,
    ):
        ask(manager, ASKED)
        run_until(manager, lambda: paging.stats()["parked_now"])
        for gpu in ("SHM-1", "SHM-2"):
            node.load(gpu, 30 * MIB)
        wait_until(lambda: client.stats()["evacuated_bytes"], what="what is parked is moved")
        assert said(run_to_end(manager)) == [expected(one) for one in ASKED]
        assert paging.stats()["recomputed"] == 0


@pytest.mark.parametrize("scheduler", ["fifo", "aqua_fair"])
def test_bytes_that_are_lost_while_they_are_fetched_are_computed_again(
    client: aqua_client.Client, scheduler: str
) -> None:
    """Nobody knew before: the request leaves the batch that it was in, and says what it should."""
    pools = LosingPools(client, losses=2)
    manager = manager_of(batching(scheduler_type=scheduler))
    with closing(attach(manager, client=pools, ahead_bytes=0)) as paging:
        ask(manager, ASKED)
        assert said(run_to_end(manager)) == [expected(one) for one in ASKED]
        assert pools.losses_left == 0
        assert paging.stats()["recomputed"] == 2


@pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning")
def test_what_a_keeper_takes_with_it_is_computed_again() -> None:
    """Parked bytes that are lost cost time, and nothing else."""
    with (
        running_node(gpus=2, gpu_bytes=32 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
        closing(attach(manager := manager_of(batching()), client=client)) as paging,
    ):
        ask(manager, ASKED)
        run_until(manager, lambda: paging.stats()["parked_now"])
        node.kill_keeper()
        wait_until(lambda: client.stats()["leases_lost"], what="the loss is noticed")
        assert said(run_to_end(manager)) == [expected(one) for one in ASKED]
        assert paging.stats()["recomputed"] >= 1
