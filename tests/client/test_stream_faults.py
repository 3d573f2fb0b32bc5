"""Copies that are only enqueued where a copy, an event or a whole device fails."""

from __future__ import annotations

import logging

import pytest
import torch

from aqua_client import copying
from aqua_client.cuda_streams import CudaStreams
from aqua_client.errors import InvalidRequest
from tests.client.flights import some_looks, used_bytes
from tests.client.pagers import paging, park, random_bytes, two_gpus, wait_acknowledged
from tests.fakes.session import MIB, FakeNode, is_mapped
from tests.fakes.streams import FakeEvent, FakeStreams
from tests.nodes import wait_until


def test_what_is_lost_while_it_is_written_stays_mapped_until_the_copy_is_over() -> None:
    """The memory has failed; unmapping it under a copy would make that worse."""
    streams, node = FakeStreams(), FakeNode()
    with paging(node, streams=streams) as pager:
        handle = park(pager, random_bytes(MIB))
        (lease_id,) = node.leases
        node.listener.leases_lost([lease_id], "keeper")
        assert handle.tier == "lost"
        some_looks(streams.events[0], more=8)
        assert is_mapped(lease_id)
        streams.finish_all()
        wait_until(lambda: not is_mapped(lease_id), what="unmapped")


@pytest.mark.parametrize("what", ["write", "read"])
def test_a_copy_that_fails_half_way_holds_its_place_too(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of it may have been enqueued."""
    streams, node = FakeStreams(is_quick=True), FakeNode()
    with paging(node, streams=streams) as pager:
        handle = park(pager, random_bytes(MIB))
        wait_until(lambda: not pager._tiers.flights, what="written")
        streams.is_quick = False

        def failing(*_: object) -> None:
            raise RuntimeError("CUDA error: out of memory")

        monkeypatch.setattr(copying, what, failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            handle.fetch() if what == "read" else park(pager, random_bytes(MIB, seed=1))
        monkeypatch.undo()
        handle.release()
        some_looks(streams.events[-1])
        assert used_bytes(pager) == MIB
        streams.finish_all()
        wait_until(lambda: used_bytes(pager) == 0, what="free")


def test_an_event_that_can_not_be_recorded_keeps_the_slab_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody can know what still happens there; the daemon quarantines it, others go on."""
    streams, node = FakeStreams(is_quick=True), two_gpus()

    def failing(*_: object, **__: object) -> FakeEvent:
        raise RuntimeError("CUDA error: unspecified launch failure")

    with paging(node, streams=streams) as pager:
        monkeypatch.setattr(streams, "record", failing)
        with pytest.raises(RuntimeError, match="launch failure"):
            park(pager, random_bytes(MIB))
        monkeypatch.undo()
        (place,) = pager._tiers.flights[0].places
        handle = park(pager, random_bytes(30 * MIB))
        stuck = place.slab.lease_id if place.slab else ""
        revoked = node.revoke("SHM-1") + node.revoke("SHM-2")
        wait_acknowledged(node, tuple(one for one in revoked if one != stuck))
        assert stuck not in node.acknowledged
        assert torch.equal(handle.fetch(), random_bytes(30 * MIB))
        pager._tiers.flights[0].event = FakeEvent(is_done=True)  # so that the test can end
        wait_acknowledged(node, (stuck,))


def test_a_failed_device_is_told_once_and_hurts_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its copies are never over; another slab's revoke is served."""
    streams, node = FakeStreams(), two_gpus()
    with paging(node, streams=streams) as pager, caplog.at_level(logging.ERROR, "aqua"):
        park(pager, random_bytes(30 * MIB))
        failed_on = next(iter(node.leases.values())).gpu
        streams.events[0].fail()
        streams.is_quick = True
        other = park(pager, random_bytes(20 * MIB, seed=1))
        assert len({one.gpu for one in node.leases.values()}) == 2
        slow, quick = node.ids_on(failed_on), tuple(node.leases)
        node.revoke(failed_on)
        node.revoke("SHM-2" if failed_on == "SHM-1" else "SHM-1")
        wait_acknowledged(node, tuple(set(quick) - set(slow)))
        some_looks(streams.events[0])
        assert not set(slow) & set(node.acknowledged)
        assert torch.equal(other.fetch(), random_bytes(20 * MIB, seed=1))
        assert len([one for one in caplog.records if "illegal memory" in one.message]) == 1
        streams.events[0]._failure = ""
        streams.finish_all()


def test_a_dead_context_captures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked whether it does, torch raises; what lies in the host can be fetched all the same."""

    def dead() -> bool:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", dead)
    CudaStreams().check_not_capturing()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(InvalidRequest, match="captured"):
        CudaStreams().check_not_capturing()
