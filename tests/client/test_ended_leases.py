"""Leases that ended or were lost without being asked back, and until when a lease is named."""

from __future__ import annotations

import pytest
import torch

from aqua_client.errors import LeaseLost
from aqua_client.records import RevokeNotice
from tests.client.pagers import paging, park, random_bytes, two_gpus, wait_acknowledged
from tests.fakes.session import MIB, FakeNode
from tests.nodes import wait_until


def test_leases_that_ended_are_emptied_without_a_word() -> None:
    """A daemon that does not know them has nobody waiting."""
    node = FakeNode()
    tensor = random_bytes(MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        ids = node.ids_on("SHM-1")
        node.gpu_bytes["SHM-1"] = 0
        node.leases.clear()
        node.listener.leases_ended(ids)
        node.listener.leases_ended(ids)
        wait_until(lambda: pager.stats()["leases"] == {}, what="the slab is gone")
        assert (handle.tier, handle.reason) == ("host", "ended")
        assert torch.equal(handle.fetch(), tensor)
        assert node.returned == []
        assert node.listener.host_room().nbytes == MIB


def test_lost_leases_take_their_data_with_them() -> None:
    """Of both classes; what lies elsewhere stays."""
    node = two_gpus()
    with paging(node) as pager:
        lost, cached = park(pager, random_bytes(MIB)), park(pager, random_bytes(MIB), keep="cache")
        reservation = pager.reserve(1000, lost._stored.safety)
        node.listener.leases_lost(tuple(node.leases), "keeper_ended")
        assert pager.written(reservation).tier == "lost"
        for handle in (lost, cached):
            assert (handle.tier, handle.reason) == ("lost", "keeper_ended")
            with pytest.raises(LeaseLost, match="keeper_ended"):
                handle.fetch()
        wait_until(lambda: pager.stats()["leases"] == {}, what="unmapped")
        node.leases.clear()
        assert node.returned == []
        assert pager.stats()["leases_lost"] == 2
        assert park(pager, random_bytes(MIB)).tier == "peer"


def test_leases_are_named_until_they_are_unmapped() -> None:
    """The daemon takes back what is not named."""
    node = two_gpus()
    with paging(node) as pager:
        handle = park(pager, random_bytes(MIB))
        (use,) = node.listener.lease_uses()
        assert (use.used_bytes, use.copy_bytes) == (MIB, MIB)
        assert use.idle_seconds < 60
        places = pager.pin(handle._stored)
        node.listener.revoked(
            RevokeNotice(
                lender_gpu="SHM-1", nbytes=0, reason="test", deadline=0.0, lease_ids=(use.lease_id,)
            )
        )
        wait_until(lambda: pager.stats()["evacuated_bytes"], what="moved")
        assert use.lease_id in {one.lease_id for one in node.listener.lease_uses()}
        pager.unpin(places, is_read=True)
        wait_acknowledged(node, (use.lease_id,))
        assert use.lease_id not in {one.lease_id for one in node.listener.lease_uses()}
