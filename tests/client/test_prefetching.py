"""Prefetching changes when bytes are copied, never which ones a fetch gives, nor what it raises."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from aqua_client import awaiting, copying, prefetching
from aqua_client.errors import HandleReleased, InvalidRequest, LeaseLost
from tests.client.pagers import paging, park, random_bytes, two_gpus, wait_acknowledged
from tests.client.prefetches import NBYTES, prefetch, stat
from tests.nodes import wait_until


class Gate:
    """Holds copies of other threads than the test's own until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def pass_through(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            self.reached.set()
            assert self.opened.wait(30)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """In the way of every prefetch."""
    made, plain = Gate(), copying.read

    def read(*args: object, **options: object) -> None:
        made.pass_through()
        plain(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(copying, "read", read)
    yield made
    made.opened.set()


@pytest.fixture
def never_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all threads were busy."""
    monkeypatch.setattr(awaiting, "in_background", lambda _call, *, device: device)


def test_a_fetch_takes_what_was_prefetched() -> None:
    """The bytes were moved once, and the next fetch moves them again."""
    tensor = torch.rand(NBYTES // 4).requires_grad_()
    with paging(two_gpus()) as pager:
        handle = park(pager, tensor)
        prefetch(handle)
        prefetched = handle._stored.prefetched
        assert prefetched is not None
        assert stat(pager, "prefetched_bytes") == NBYTES
        fetched = handle.fetch()
        assert fetched.data_ptr() == prefetched.target.data_ptr()
        assert torch.equal(fetched, tensor)
        assert fetched.requires_grad
        assert fetched.is_leaf
        assert stat(pager, "prefetched_bytes") == 0
        assert [stat(pager, name) for name in ("prefetches", "fetches")] == [1, 1]
        assert stat(pager, "peer_in_bytes") == NBYTES
        again = handle.fetch()
        assert again.data_ptr() != fetched.data_ptr()
        assert torch.equal(again, tensor)


def test_nobody_waits_for_a_prefetch_but_the_fetch(gate: Gate) -> None:
    """Which waits for what is missing only."""
    tensor = random_bytes(NBYTES)
    with paging(two_gpus()) as pager:
        handle = park(pager, tensor)
        handle.prefetch()
        assert gate.reached.wait(10)
        handle.prefetch()  # no second one
        fetched: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: fetched.append(handle.fetch()))
        thread.start()
        wait_until(lambda: handle._stored.prefetched is None, what="the fetch has come for it")
        assert thread.is_alive()
        gate.opened.set()
        thread.join()
        assert torch.equal(fetched[0], tensor)
        assert stat(pager, "prefetches") == 1


@pytest.mark.usefixtures("never_begun")
def test_what_was_not_begun_is_fetched_as_ever() -> None:
    """Waiting for a free thread would take longer than the copy."""
    tensor = random_bytes(NBYTES)
    with paging(two_gpus()) as pager:
        handle = park(pager, tensor)
        handle.prefetch()
        assert torch.equal(handle.fetch(), tensor)
        assert stat(pager, "fetches") == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e5m2, torch.complex64])
def test_a_fetch_into_a_tensor_is_right_after_a_prefetch(dtype: torch.dtype) -> None:
    """Whatever its strides; what was prefetched is used up, and a bad one uses nothing up."""
    tensor = random_bytes(800).view(dtype).view(10, -1)
    out = torch.empty(tensor.shape[::-1], dtype=dtype).t()
    with paging(two_gpus()) as pager:
        handle = park(pager, tensor)
        prefetch(handle)
        with pytest.raises(InvalidRequest):
            handle.fetch(out=torch.empty(3))
        assert stat(pager, "prefetched_bytes") == 800
        assert handle.fetch(out=out) is out
        assert torch.equal(out.contiguous().view(torch.uint8), tensor.view(torch.uint8))
        assert stat(pager, "prefetched_bytes") == 0


def test_a_release_ends_a_prefetch(gate: Gate) -> None:
    """Also one that is under way: its place is free when it is over."""
    with paging(two_gpus()) as pager:
        handle = park(pager, random_bytes(NBYTES))
        handle.prefetch()
        assert gate.reached.wait(10)
        handle.release()
        assert stat(pager, "prefetched_bytes") == 0
        gate.opened.set()
        for call in (handle.fetch, handle.prefetch):
            with pytest.raises(HandleReleased):
                call()
        wait_until(lambda: stat(pager, "peer_bytes") == 0, what="free")


def test_a_handle_that_is_dropped_gives_its_prefetch_up() -> None:
    """Garbage collection releases that too."""
    with paging(two_gpus()) as pager:
        handle = park(pager, random_bytes(NBYTES))
        prefetch(handle)
        del handle
        assert stat(pager, "prefetched_bytes") == 0


def test_what_came_before_the_loss_is_fetched_once() -> None:
    """These are the bytes; after that there are none."""
    tensor = random_bytes(NBYTES)
    node = two_gpus()
    with paging(node) as pager:
        early, late = park(pager, tensor), park(pager, tensor)
        prefetch(early)
        node.listener.leases_lost(tuple(node.leases), "keeper_ended")
        assert early.tier == "lost"
        early.prefetch()  # it is there
        assert torch.equal(early.fetch(), tensor)
        for call in (early.fetch, late.fetch, late.prefetch):
            with pytest.raises(LeaseLost):
                call()
        node.leases.clear()


@pytest.mark.usefixtures("never_begun")
def test_a_loss_before_the_prefetch_is_raised_by_the_fetch() -> None:
    """As without one."""
    node = two_gpus()
    with paging(node) as pager:
        handle = park(pager, random_bytes(NBYTES))
        handle.prefetch()
        node.listener.leases_lost(tuple(node.leases), "keeper_ended")
        with pytest.raises(LeaseLost):
            handle.fetch()
        node.leases.clear()


def test_a_revoke_waits_for_a_prefetch_and_moves_what_stays(gate: Gate) -> None:
    """The bytes are right in both places."""
    node = two_gpus()
    tensor = random_bytes(NBYTES)
    with paging(node) as pager:
        handle = park(pager, tensor)
        handle.prefetch()
        assert gate.reached.wait(10)
        revoked = node.revoke(next(iter(node.leases.values())).gpu)
        wait_until(lambda: stat(pager, "evacuated_bytes"), what="moved")
        assert node.acknowledged == []
        gate.opened.set()
        wait_acknowledged(node, revoked)
        assert torch.equal(handle.fetch(), tensor)
        assert torch.equal(handle.fetch(), tensor)


def test_what_may_be_prefetched_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it prefetching does nothing; a fetch makes room."""
    monkeypatch.setattr(prefetching, "MOST_BYTES", 2 * NBYTES)
    with paging(two_gpus()) as pager:
        handles = [park(pager, random_bytes(NBYTES, seed=seed)) for seed in range(3)]
        for handle in handles:
            handle.prefetch()
        assert stat(pager, "prefetched_bytes") == 2 * NBYTES
        for seed, handle in enumerate(handles):
            assert torch.equal(handle.fetch(), random_bytes(NBYTES, seed=seed))
        handles[2].prefetch()
        assert stat(pager, "prefetches") == 3


def test_where_no_memory_is_left_a_prefetch_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time of the fetch there may be some."""

    def fail(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("none")

    tensor = random_bytes(NBYTES)
    with paging(two_gpus()) as pager:
        handle = park(pager, tensor)
        with monkeypatch.context() as patch:
            patch.setattr(copying, "new_tensor", fail)
            handle.prefetch()
        assert stat(pager, "prefetched_bytes") == 0
        assert torch.equal(handle.fetch(), tensor)


def test_a_tensor_without_bytes_needs_no_prefetch() -> None:
    """Nothing is begun."""
    with paging(two_gpus()) as pager:
        handle = park(pager, torch.empty(0, 3))
        handle.prefetch()
        assert handle.fetch().shape == (0, 3)
        assert stat(pager, "prefetches") == 0
