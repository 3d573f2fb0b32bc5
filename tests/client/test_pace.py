"""How many pieces an evacuation copies together: few where somebody fetches and nobody computes."""

from __future__ import annotations

import threading
import time

import pytest

from aqua_client import pace
from aqua_client.pace import FEWEST_PIECES, MOST_PIECES, Pace
from tests.client.pagers import paging, park, random_bytes, wait_acknowledged
from tests.fakes.session import MIB, FakeNode


def waiting(seconds: float) -> None:
    """As a copy after which the interpreter was waited for."""
    threading.Event().wait(seconds)


def test_where_nobody_fetches_there_are_as_many_as_can_be() -> None:
    """Nobody waits for the books to be free."""
    assert Pace().pieces(time.monotonic() - 1.0) == MOST_PIECES
    assert Pace().pieces(time.monotonic()) == FEWEST_PIECES


def test_they_grow_while_the_interpreter_is_contended_and_are_few_again_afterwards() -> None:
    """A copy that took longer than the thread worked has waited for somebody."""
    paced, found = Pace(), []
    for _ in range(8):
        with paced.measured():
            waiting(2 * pace.CONTENDED_SECONDS)
        found.append(paced.pieces(time.monotonic()))
    assert found == [16, 32, 64, 128, 256, 256, 256, 256]


def test_they_are_few_again_when_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next fetch is not to wait for the books of many."""
    paced = Pace()
    with paced.measured():
        waiting(2 * pace.CONTENDED_SECONDS)
    assert paced.pieces(time.monotonic()) > FEWEST_PIECES
    monkeypatch.setattr(pace, "CONTENDED_SECONDS", 60.0)  # whatever else runs here
    with paced.measured():
        pass
    assert paced.pieces(time.monotonic()) == FEWEST_PIECES


def test_a_slab_of_small_pieces_is_emptied_in_few_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 pieces, each after a call that may have to wait for the interpreter."""
    node, copies = FakeNode(), list[int]()
    copy = pace.Pace.measured

    def counted(self: Pace) -> object:
        copies.append(1)
        return copy(self)

    monkeypatch.setattr(pace.Pace, "measured", counted)
    tensors = [random_bytes(4096, seed=seed) for seed in range(200)]
    with paging(node) as pager:
        handles = [park(pager, tensor) for tensor in tensors]
        monkeypatch.setattr(pace, "FETCHING_SECONDS", 0.0)
        wait_acknowledged(node, node.revoke("SHM-1"))
        assert {handle.tier for handle in handles} == {"host"}
        assert all((h.fetch() == t).all() for h, t in zip(handles, tensors, strict=True))
    assert len(copies) == 1


def test_where_there_is_no_memory_for_many_they_are_moved_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has room gets it; the rest stays readable, and is tried again."""
    node, made, tensors = FakeNode(), list[int](), [random_bytes(MIB, seed=n) for n in range(3)]
    with paging(node) as pager:
        memories = pager._worker._buffer.memories

        def scarce(sizes: list[int]) -> object:
            if len(sizes) > 1 or len(made) == 2:
                made.extend([0] * (len(sizes) == 1))
                raise MemoryError("none left")
            made.append(sizes[0])
            return memories(sizes)

        handles = [park(pager, tensor) for tensor in tensors]
        monkeypatch.setattr(pager._worker._buffer, "memories", scarce)
        wait_acknowledged(node, node.revoke("SHM-1"))
        assert made == [MIB, MIB, 0, MIB]
        assert all((h.fetch() == t).all() for h, t in zip(handles, tensors, strict=True))
