"""Larger copies keep the interpreter while a slab is emptied, and let go of it otherwise."""

from __future__ import annotations

import os

import pytest
import torch

from aqua_client import libc, moving
from aqua_client.held_copies import BESIDE_MOVES_BYTES, HELD_COPIES, PLAIN_BYTES
from tests.client.pagers import paging, park, random_bytes, wait_acknowledged
from tests.fakes.session import FakeNode


def test_more_is_held_as_long_as_anybody_empties_a_slab() -> None:
    """Two clients of one process may do so at the same time; an error ends it too."""
    with HELD_COPIES.beside_moves():
        with pytest.raises(ZeroDivisionError), HELD_COPIES.beside_moves():
            _ = 1 // 0
        assert HELD_COPIES.most_bytes == BESIDE_MOVES_BYTES
    assert HELD_COPIES.most_bytes == PLAIN_BYTES


def test_a_forked_child_empties_nothing() -> None:
    """Whoever does, or holds the lock just then, is not there: nor would it ever be given up."""
    with HELD_COPIES.beside_moves(), HELD_COPIES._lock:
        child = os.fork()
        if not child:
            with HELD_COPIES.beside_moves():
                held = HELD_COPIES.most_bytes
            os._exit((held, HELD_COPIES.most_bytes) != (BESIDE_MOVES_BYTES, PLAIN_BYTES))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("nbytes", "held"), [(PLAIN_BYTES + 1, 2), (BESIDE_MOVES_BYTES, 2), (BESIDE_MOVES_BYTES + 1, 0)]
)
def test_beside_moves_a_copy_of_a_mebibyte_is_one_move_of_bytes(
    monkeypatch: pytest.MonkeyPatch, nbytes: int, held: int
) -> None:
    """Out and in; the bytes are the same either way."""
    moved, move = list[int](), libc.move

    def counted(target: int, source: int, count: int) -> None:
        moved.append(count)
        move(target, source, count)

    monkeypatch.setattr(libc, "move", counted)
    tensor = random_bytes(nbytes)
    with paging(FakeNode()) as pager:
        assert torch.equal(park(pager, tensor).fetch(), tensor)
        assert moved == []
        with HELD_COPIES.beside_moves():
            assert torch.equal(park(pager, tensor).fetch(), tensor)
        assert moved == [nbytes] * held


def test_an_evacuation_is_such_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """From its first copy to its last; then it is over."""
    node, seen, copy = FakeNode(), list[int](), moving.copy_pieces

    def watched(*arguments: object) -> None:
        seen.append(HELD_COPIES.most_bytes)
        copy(*arguments)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(moving, "copy_pieces", watched)
    tensor = random_bytes(PLAIN_BYTES)
    with paging(node) as pager:
        handle = park(pager, tensor)
        wait_acknowledged(node, node.revoke("SHM-1"))
        assert torch.equal(handle.fetch(), tensor)
    assert seen
    assert set(seen) == {BESIDE_MOVES_BYTES}
    assert HELD_COPIES.most_bytes == PLAIN_BYTES
