"""Where bytes go: slabs that grow with use, the host when there are none, errors when nowhere."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from aqua_client import borrowing, worker
from aqua_client.errors import (
    BrokerUnreachable,
    HandleReleased,
    InsufficientMemory,
)
from aqua_client.fallback import AquaWarning
from aqua_client.settings import Fallback
from tests.client.pagers import no_daemon, paging, park, random_bytes, two_gpus
from tests.fakes.session import MIB, FakeNode
from tests.nodes import wait_until


def test_offloads_within_a_slab_talk_to_nobody() -> None:
    """One slab is borrowed, and used until it is full."""
    node = two_gpus()
    with paging(node) as pager:
        tensors = [random_bytes(64 * 1024, seed=seed) for seed in range(64)]
        handles = [park(pager, tensor) for tensor in tensors]
        assert node.asked == [4 * MIB]
        assert {handle.tier for handle in handles} == {"peer"}
        assert all(torch.equal(h.fetch(), t) for h, t in zip(handles, tensors, strict=True))
        park(pager, tensors[0])
        assert node.asked == [4 * MIB, 8 * MIB]  # twice as large for each one held


def test_room_that_was_released_is_used_again() -> None:
    """Parking and releasing for ever needs one slab."""
    node = two_gpus()
    with paging(node) as pager:
        for seed in range(20):
            handle = park(pager, random_bytes(3 * MIB, seed=seed))
            handle.release()
    assert node.asked == [4 * MIB]


def test_a_slab_is_large_enough_for_the_tensor() -> None:
    """Where slabs can be so large."""
    node = two_gpus()
    with paging(node) as pager:
        assert park(pager, random_bytes(9 * MIB)).tier == "peer"
    assert node.asked == [16 * MIB]


def test_a_tensor_may_lie_in_several_slabs() -> None:
    """Larger than any slab: whole slabs, then the rest."""
    node = two_gpus(128 * MIB)
    tensor = random_bytes(70 * MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        assert handle.tier == "peer"
        assert node.asked == [32 * MIB, 32 * MIB, 16 * MIB]
        assert torch.equal(handle.fetch(), tensor)


def test_smaller_slabs_are_asked_for_where_large_ones_are_refused() -> None:
    """What is free is used, in pieces, before the host is."""
    node = FakeNode(gpu_bytes={"SHM-1": 24 * MIB})
    tensor = random_bytes(30 * MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        assert handle.tier == "mixed"
        assert handle.reason == "no_room"
        assert pager.stats()["peer_bytes"] == 24 * MIB
        assert pager.stats()["host_bytes"] == 6 * MIB
        assert torch.equal(handle.fetch(), tensor)


def test_store_and_cache_never_share_a_slab() -> None:
    """A slab holds one safety class."""
    node = two_gpus()
    with paging(node) as pager:
        kept, cached = (
            park(pager, random_bytes(1000)),
            park(pager, random_bytes(1000), keep="cache"),
        )
        assert {one.safety.value for one in node.leases.values()} == {"store", "cache"}
        assert kept.tier == cached.tier == "peer"


def test_without_a_daemon_host_memory_is_used_and_told_once() -> None:
    """One warning, a reason on each handle, and a counter."""
    node = no_daemon()
    tensor = random_bytes(1000)
    with paging(node, quiet=False) as pager:
        with pytest.warns(AquaWarning, match="no_daemon") as told:
            first = park(pager, tensor)
        second = park(pager, tensor)
        assert told[0].filename == tensors_home()
        assert first.tier == second.tier == "host"
        assert first.reason == "no_daemon"
        assert pager.stats()["fallbacks"] == {"no_daemon": 2}
        assert torch.equal(second.fetch(), tensor)
    assert node.asked == []


def tensors_home() -> str:
    """The file that the warning names: the one that called the library."""
    return park.__code__.co_filename


def test_a_warning_that_is_an_error_leaves_nothing_behind() -> None:
    """Programs may turn warnings into errors."""
    with paging(no_daemon(), quiet=False) as pager:
        with pytest.raises(AquaWarning):  # as pytest is told to
            park(pager, random_bytes(1000))
        assert pager.stats()["host_bytes"] == 0


def test_fallback_error_refuses_instead() -> None:
    """Who wants no host memory gets an error that says why."""
    with (
        paging(no_daemon(), fallback=Fallback.ERROR) as pager,
        pytest.raises(BrokerUnreachable, match="AQUA_FALLBACK"),
    ):
        park(pager, random_bytes(1000))
    with (
        paging(FakeNode(refusal="no_room"), fallback=Fallback.ERROR) as pager,
        pytest.raises(InsufficientMemory),
    ):
        park(pager, random_bytes(1000))


def test_a_refusal_is_remembered_for_a_moment() -> None:
    """A full node does not cost a call per offload, and is asked again later."""
    node = FakeNode(refusal="quota")
    with paging(node) as pager:
        handles = [park(pager, random_bytes(100)) for _ in range(50)]
        assert {handle.reason for handle in handles} == {"quota"}
        assert len(node.asked) == 1
        node.refusal = ""
        wait_until(lambda: park(pager, random_bytes(100)).tier == "peer", what="asked again")


def test_nowhere_room_is_an_error_with_both_figures_and_no_effect() -> None:
    """The tensor is as it was, and nothing stays claimed."""
    tensor = random_bytes(3 * MIB)
    with paging(no_daemon(), host_limit_bytes=4 * MIB) as pager:
        first = park(pager, tensor)
        with pytest.raises(InsufficientMemory) as caught:
            park(pager, tensor)
        assert caught.value.asked_bytes == 3 * MIB
        assert caught.value.host_free_bytes == 1 * MIB
        assert torch.equal(tensor, random_bytes(3 * MIB))
        assert pager.stats()["host_bytes"] == 3 * MIB
        first.release()
        assert park(pager, tensor).tier == "host"


def test_host_memory_is_reserved_at_the_daemon_in_steps() -> None:
    """A few calls for many offloads; the exact bytes where a whole step is too much."""
    node = FakeNode(refusal="no_room", host_pool_bytes=20 * MIB)
    with paging(node, host_limit_bytes=0) as pager:
        handles = [park(pager, random_bytes(MIB)) for _ in range(16)]
        assert node.room.revision == 1
        assert node.room.nbytes == 16 * MIB
        handles += [park(pager, random_bytes(MIB)) for _ in range(4)]
        assert node.room.nbytes == 20 * MIB
        with pytest.raises(InsufficientMemory, match="no_host_room"):
            park(pager, random_bytes(MIB))
        assert pager.stats()["host_bytes"] == 20 * MIB
        handles.clear()
        assert pager.stats()["host_bytes"] == 0


def test_a_slab_that_can_not_be_used_is_given_back() -> None:
    """And host memory is used, for that reason."""
    node = FakeNode(wrong_canary=True)
    with paging(node) as pager:
        handle = park(pager, random_bytes(1000))
        assert (handle.tier, handle.reason) == ("host", "canary")
        assert len(node.released) == 1


def test_slabs_that_can_not_be_used_are_not_asked_for_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each costs the lender an allocation and a scrub; a refusal costs a call."""
    monkeypatch.setattr(borrowing, "BACK_OFF_SECONDS", 0.0)
    node = FakeNode(wrong_canary=True)
    with paging(node) as pager:
        reasons = [park(pager, random_bytes(1000)).reason for _ in range(5)]
        assert reasons == ["canary"] * 5
        assert len(node.asked) == 1
    node = FakeNode(refusal="no_room", largest_slab_bytes=4 * MIB)
    with paging(node) as pager:
        for _ in range(5):
            park(pager, random_bytes(1000))
        assert len(node.asked) == 5


def test_handles_that_are_dropped_release_their_memory() -> None:
    """By the next operation, or without one by the worker."""
    node = two_gpus()
    with paging(node) as pager:
        handle = park(pager, random_bytes(MIB))
        del handle
        gc.collect()
        wait_until(lambda: pager._counters.releases == 1, what="the worker collects")
        assert pager.stats()["peer_bytes"] == 0


def test_empty_slabs_go_back_after_a_while_all_but_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is kept for the next burst, and goes back later."""
    monkeypatch.setattr(worker, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(worker, "IDLE_SECONDS", 0.1)
    node = two_gpus()
    with paging(node) as pager:
        handles = [park(pager, random_bytes(4 * MIB, seed=seed)) for seed in range(4)]
        assert len(node.leases) > 1
        held = len(node.leases)
        handles.clear()
        wait_until(lambda: len(node.released) == held - 1, what="all but one go back")
        assert len(node.leases) == 1
        monkeypatch.setattr(worker, "WARM_SECONDS", 0.1)
        wait_until(lambda: not node.leases, what="the last goes back")
        assert node.still_mapped == []
        assert node.acknowledged == []


def test_many_threads_borrow_no_more_slabs_than_they_need() -> None:
    """One asks, the others wait for what it gets."""
    node = two_gpus()
    node.answers.clear()
    with paging(node) as pager:
        parked: list[str] = []
        threads = [
            threading.Thread(target=lambda: parked.append(park(pager, random_bytes(1000)).tier))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: node.asked, what="somebody asks")
        node.answers.set()
        for thread in threads:
            thread.join()
        assert parked == ["peer"] * 8
        assert node.asked == [4 * MIB]


def test_a_hung_daemon_costs_a_deadline_and_nothing_else() -> None:
    """The offload goes to the host then, and the next ones do not wait."""
    node = two_gpus()
    node.answers.clear()
    with paging(node) as pager:
        pager._settings = type(pager._settings)(host_limit_bytes=MIB, acquire_seconds=0.05)
        handle = park(pager, random_bytes(1000))
        assert (handle.tier, handle.reason) == ("host", "timeout")
        started = time.monotonic()
        assert park(pager, random_bytes(1000)).reason == "timeout"
        assert time.monotonic() - started < 5.0
        node.answers.set()


def test_a_breaker_is_probed_in_the_background() -> None:
    """No offload waits for a daemon that is stuck; when it answers, the next ones go to peers."""
    node = two_gpus()
    with paging(node) as pager:
        node.unreachable = "breaker"
        assert park(pager, random_bytes(1000)).reason == "breaker"
        assert node.asked == []
        wait_until(lambda: node.probes > 1, what="the worker asks")
        node.unreachable = ""
        assert park(pager, random_bytes(1000)).tier == "peer"


def test_while_detached_held_slabs_are_used_until_their_term_may_have_lapsed() -> None:
    """Reading goes on for ever; nothing new is written to a lease that may have lapsed."""
    node = two_gpus()
    tensor = random_bytes(1000)
    with paging(node) as pager:
        before = park(pager, tensor)
        node.unreachable = "lost"
        node.listener.detached("lost")
        assert park(pager, tensor).tier == "peer"
        wait_until(lambda: pager._news.silent_seconds > 0.1, what="a while without contact")
        node.term_seconds = 3 * pager._news.silent_seconds  # of which a third is over, no more
        late = park(pager, tensor)
        assert (late.tier, late.reason) == ("host", "lost")
        assert torch.equal(before.fetch(), tensor)
        node.unreachable, node.term_seconds = "", 10.0
        node.listener.attached()
        assert park(pager, tensor).tier == "peer"


def test_a_closed_pager_refuses_everything_and_holds_nothing() -> None:
    """Handles say that their client was closed; releasing them is no error."""
    node = two_gpus()
    with paging(node) as pager:
        handle = park(pager, random_bytes(1000))
    assert pager.is_closed
    with pytest.raises(HandleReleased, match="closed"):
        handle.fetch()
    with pytest.raises(HandleReleased, match="closed"):
        park(pager, random_bytes(1000))
    handle.release()
    pager.close()


def test_a_reservation_that_a_keepalive_overtakes_is_made_again() -> None:
    """The keepalive states what is held, not what is asked for; so the daemon hears of it twice."""
    node = FakeNode(refusal="no_room")
    with paging(node) as pager, ThreadPoolExecutor(1) as thread:
        node.host_answers.clear()
        parked = thread.submit(park, pager, random_bytes(4 * MIB))
        wait_until(lambda: node.probes == 1, what="host room is asked for")
        node.room = node.listener.host_room()
        assert node.room.nbytes == 0
        node.host_answers.set()
        assert parked.result(10.0).tier == "host"
        assert node.probes == 2
        assert node.room.nbytes >= 4 * MIB
