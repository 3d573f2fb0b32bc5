"""How many slabs are told of in one call, each of which interrupts the copies or the unmapping."""

from __future__ import annotations

import pytest

from aqua_client import telling
from aqua_client.copying import Memory
from aqua_client.records import Grant, SafetyClass
from aqua_client.slabs import Slab
from tests.client.pagers import paging, park, random_bytes, wait_acknowledged
from tests.fakes.session import MIB, FakeNode


def slab() -> Slab:
    """One that was unmapped."""
    grant = Grant(
        lease_id="a",
        lender_gpu="SHM-1",
        nbytes=MIB,
        safety_class=SafetyClass.CACHE,
        keeper_pid=1,
        canary=b"",
        descriptor=None,
        cuda_ipc=b"",
    )
    return Slab(grant, Memory.of_host(1), now=0.0)


def calls(seconds: float, monkeypatch: pytest.MonkeyPatch, keep: str = "store") -> list[int]:
    """How many slabs each call names, where one is made about each so many seconds."""
    monkeypatch.setattr(telling, "TOGETHER_SECONDS", seconds)
    node = FakeNode(largest_slab_bytes=4 * MIB)
    tensors = [random_bytes(3 * MIB, seed=seed) for seed in range(5)]
    with paging(node) as pager:
        handles = [park(pager, tensor, keep=keep) for tensor in tensors]
        revoked = node.revoke("SHM-1")
        assert len(revoked) == len(tensors)
        wait_acknowledged(node, revoked)
        if keep == "store":
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


def test_what_needs_no_copy_is_told_of_by_the_same_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keeper is at work on the first meanwhile."""
    assert calls(60.0, monkeypatch, keep="cache") == [5]
    assert calls(0.0, monkeypatch, keep="cache") == [1] * 5


def test_the_first_goes_soon_and_the_others_wait_longer_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that an owner waits for is not held up by many, nor they by many calls."""
    monkeypatch.setattr(telling, "TOGETHER_SECONDS", 16.0)
    turns, told_at = telling.Telling(), []
    for now in range(63):  # one is unmapped each second
        if turns.due(now=now):
            told_at.append(now)
        turns.add(slab(), now=now)
    assert told_at == [2, 6, 14, 30, 46, 62]
    assert len(turns.rest()) == 1


def test_so_many_are_told_of_whatever_the_time() -> None:
    """A slab may be unmapped in no time."""
    turns = telling.Telling()
    sizes = []
    for _ in range(2 * telling.MOST_TOGETHER + 1):
        sizes.append(len(turns.due(now=0.0)))
        turns.add(slab(), now=0.0)
    assert [size for size in sizes if size] == [telling.MOST_TOGETHER] * 2
    assert len(turns.rest()) == 1
    assert turns.due(now=60.0) == turns.rest() == []
