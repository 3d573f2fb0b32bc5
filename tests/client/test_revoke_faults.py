"""Slabs that are asked back where memory, copies or calls fail: late, never lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from aqua_client import copying, worker
from aqua_client.copying import Memory, Span
from tests.client.pagers import paging, park, random_bytes, two_gpus, wait_acknowledged
from tests.fakes.session import MIB, FakeNode
from tests.nodes import wait_until


def test_no_memory_to_move_to_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes stay readable where they are meanwhile; the slab is late, not lost."""
    node = FakeNode()
    tensor = random_bytes(MIB)
    makes = Memory.of_host
    tries: list[int] = []

    def scarce(nbytes: int) -> Memory:
        tries.append(nbytes)
        if len(tries) < 3:
            raise MemoryError("none left")
        return makes(nbytes)

    with paging(node) as pager:
        handle = park(pager, tensor)
        monkeypatch.setattr(Memory, "of_host", scarce)
        revoked = node.revoke("SHM-1")
        wait_until(lambda: tries, what="a first try")
        assert torch.equal(handle.fetch(), tensor)
        wait_acknowledged(node, revoked)
        assert torch.equal(handle.fetch(), tensor)


def test_a_copy_that_fails_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault neither ends the worker's thread nor loses a byte; it is logged."""
    node = two_gpus()
    tensor = random_bytes(MIB)
    copies = copying.copy_spans
    tries: list[Span] = []

    def fails_first(pairs: Sequence[tuple[Span, Span]]) -> None:
        tries.extend(target for _, target in pairs)
        if len(tries) == 1:
            raise RuntimeError("a copy failed")
        copies(pairs)

    with paging(node) as pager:
        handle = park(pager, tensor)
        monkeypatch.setattr(copying, "copy_spans", fails_first)
        wait_acknowledged(node, node.revoke("SHM-1"))
        assert torch.equal(handle.fetch(), tensor)
        assert pager.stats()["peer_bytes"] == MIB  # the place of the failed copy is free again
    assert "a copy failed" in caplog.text


def test_a_copy_that_fails_for_good_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where this process's context is dead: it is tried on and on, and fills no log."""
    node = two_gpus()
    tries: list[int] = []

    def fails(pairs: Sequence[tuple[Span, Span]]) -> None:
        tries.append(len(pairs))
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with paging(node) as pager:
        handle = park(pager, random_bytes(MIB))
        with monkeypatch.context() as broken:
            broken.setattr(copying, "copy_spans", fails)
            broken.setattr(worker, "TICK_SECONDS", 0.02)
            revoked = node.revoke("SHM-1")
            wait_until(lambda: len(tries) > 3, what="it is tried again and again")
            assert len([one for one in caplog.records if "illegal memory" in one.message]) == 1
        wait_acknowledged(node, revoked)
        assert torch.equal(handle.fetch(), random_bytes(MIB))


def test_a_slab_that_can_not_be_emptied_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU that fails for good keeps its own slab in use; the others go back in time."""
    node = two_gpus()
    stuck, tensor = random_bytes(3 * MIB), random_bytes(MIB)
    copies = copying.copy_spans
    tries: list[Span] = []

    def fails(pairs: Sequence[tuple[Span, Span]]) -> None:
        found = [target for source, target in pairs if source.nbytes == stuck.nbytes]
        if found:
            tries.extend(found)
            raise RuntimeError("the device is gone")
        copies(pairs)

    with paging(node) as pager:
        park(pager, random_bytes(4 * MIB))  # fills the first slab, so that each has one of its own
        kept, moved = park(pager, stuck), park(pager, random_bytes(6 * MIB))
        last = park(pager, tensor)
        assert len(node.leases) >= 2
        monkeypatch.setattr(copying, "copy_spans", fails)
        ours = {place.slab.lease_id for place in kept._stored.places if place.slab is not None}
        wait_acknowledged(node, tuple({*node.revoke("SHM-1"), *node.revoke("SHM-2")} - ours))
        wait_until(lambda: len(tries) > 1, what="it is tried again")
        assert len(tries) < 50  # now and then, not as fast as it fails
        assert torch.equal(last.fetch(), tensor)
        assert torch.equal(kept.fetch(), stuck)
        assert moved.fetch().numel() == 6 * MIB
        monkeypatch.undo()
        wait_acknowledged(node, tuple(ours))
    assert "the device is gone" in caplog.text


def test_an_acknowledgement_that_does_not_get_through_is_no_harm() -> None:
    """The slab is unmapped, its data elsewhere; the daemon asks again."""
    node = FakeNode()
    tensor = random_bytes(MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        node.unreachable = "lost"
        revoked = node.revoke("SHM-1")
        wait_until(lambda: pager.stats()["leases"] == {}, what="the slab is gone")
        assert (handle.tier, node.acknowledged) == ("host", [])
        node.unreachable = ""
        node.revoke("SHM-1", revoked)
        wait_acknowledged(node, revoked)
        assert torch.equal(handle.fetch(), tensor)
