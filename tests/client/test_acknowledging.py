"""How many slabs are told of in one call, each of which interrupts the copies or the unmapping."""

from __future__ import annotations

import pytest

from aqua_client import worker
from tests.client.pagers import paging, park, random_bytes, wait_acknowledged
from tests.fakes.session import MIB, FakeNode


def calls(seconds: float, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many slabs each call names, where one is made about each so many seconds."""
    monkeypatch.setattr(worker, "TOGETHER_SECONDS", seconds)
    node = FakeNode(largest_slab_bytes=4 * MIB)
    tensors = [random_bytes(3 * MIB, seed=seed) for seed in range(5)]
    with paging(node) as pager:
        handles = [park(pager, tensor) for tensor in tensors]
        revoked = node.revoke("SHM-1")
        assert len(revoked) == len(tensors)
        wait_acknowledged(node, revoked)
        assert all((h.fetch() == t).all() for h, t in zip(handles, tensors, strict=True))
        return [len(one.lease_ids) for one in node.returned if one.how == "acknowledged"]


def test_slabs_that_are_empty_soon_after_each_other_are_told_of_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A call waits for the interpreter as a copy does."""
    assert calls(60.0, monkeypatch) == [5]


def test_an_empty_slab_does_not_wait_for_one_that_takes_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first bytes are back early."""
    assert calls(0.0, monkeypatch) == [1] * 5


def test_of_slabs_without_a_copy_the_first_is_told_of_at_once_then_twice_as_many_each_time() -> (
    None
):
    """Its keeper is at work on it meanwhile, and many calls would take longer than the rest."""
    node = FakeNode(largest_slab_bytes=4 * MIB)
    with paging(node) as pager:
        handles = [park(pager, random_bytes(3 * MIB), keep="cache") for _ in range(8)]
        revoked = node.revoke("SHM-1")
        assert len(revoked) == len(handles)
        wait_acknowledged(node, revoked)
    assert [len(one.lease_ids) for one in node.returned if one.how == "acknowledged"] == [
        1,
        2,
        4,
        1,
    ]
