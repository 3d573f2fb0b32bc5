"""What lies in the host for want of room comes back to leases: in which order, when, and when not.

Every case runs with real mappings over a made-up node; `paging` fails when a slab was still mapped
as it went back.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch

from aqua_client import moving, promotion, slabs, worker
from aqua_client.pager import Pager
from aqua_client.records import SafetyClass
from aqua_client.slabs import Place
from aqua_client.streams import Streams
from aqua_client.tensors import OffloadedTensor
from tests.client.pagers import no_daemon, paging, park, random_bytes, two_gpus, wait_acknowledged
from tests.fakes.session import MIB, FakeNode
from tests.nodes import wait_until

SMALL = 1000  # bytes; of no weight among slabs of 4 MiB


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker looks, and asks, more often than in earnest."""
    monkeypatch.setattr(worker, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(promotion, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(promotion, "FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(promotion, "LONGEST_PAUSE_SECONDS", 0.05)


def full_node() -> FakeNode:
    """One lender, which has nothing to lend yet."""
    return FakeNode(gpu_bytes={"SHM-1": 0})


def promoted(pager: Pager) -> object:
    return pager.stats()["promoted_bytes"]


def on_peer(handle: OffloadedTensor) -> None:
    wait_until(lambda: handle.tier == "peer", what="it is on a peer")


def asked_again(node: FakeNode) -> None:
    """Return when room was asked for, and refused, once more."""
    before = len(node.asked)
    wait_until(lambda: len(node.asked) > before + 1, what="asked again")


@pytest.mark.parametrize("keep", ["store", "cache"])
def test_what_found_no_room_comes_back_when_there_is_some(keep: str) -> None:
    """Exactly, with nothing left in the host, and nothing reserved there at the daemon."""
    node = full_node()
    tensor = random_bytes(9 * MIB + 5)
    with paging(node) as pager:
        handle = park(pager, tensor, keep=keep)
        assert (handle.tier, handle.reason) == ("host", "no_room")
        asked_again(node)
        assert handle.tier == "host"
        node.gpu_bytes["SHM-1"] = 64 * MIB
        on_peer(handle)
        assert handle.reason == ""
        assert torch.equal(handle.fetch(), tensor)
        assert promoted(pager) == tensor.nbytes
        assert pager.stats()["host_bytes"] == 0
        assert node.listener.host_room().nbytes == 0


def test_what_was_parked_without_a_daemon_comes_back_with_one() -> None:
    """Leases are had as soon as there are any."""
    node = no_daemon()
    tensor = random_bytes(MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        assert (handle.tier, handle.reason) == ("host", "no_daemon")
        node.smallest_slab_bytes, node.largest_slab_bytes = 4 * MIB, 32 * MIB
        node.unreachable = ""
        on_peer(handle)
        assert torch.equal(handle.fetch(), tensor)


def test_what_is_released_makes_room_for_it() -> None:
    """In a slab that is held, without another word to the daemon."""
    node = FakeNode(gpu_bytes={"SHM-1": 4 * MIB})
    with paging(node) as pager:
        first, second = park(pager, random_bytes(3 * MIB)), park(pager, random_bytes(2 * MIB))
        assert (first.tier, second.tier) == ("peer", "host")
        first.release()
        on_peer(second)
        assert pager.stats()["leases_granted"] == 1


def test_what_was_fetched_last_comes_first() -> None:
    """There is room for one of three."""
    node = full_node()
    tensors = [random_bytes(3 * MIB, seed=seed) for seed in range(3)]
    with paging(node) as pager:
        handles = [park(pager, tensor) for tensor in tensors]
        handles[1].fetch()
        node.gpu_bytes["SHM-1"] = 4 * MIB
        on_peer(handles[1])
        asked_again(node)
        assert [handle.tier for handle in handles] == ["host", "peer", "host"]
        assert all(torch.equal(h.fetch(), t) for h, t in zip(handles, tensors, strict=True))


def test_a_large_tensor_comes_back_as_far_as_there_is_room() -> None:
    """Piece by piece; it is in both tiers then, and says why."""
    node = full_node()
    tensor = random_bytes(20 * MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        node.gpu_bytes["SHM-1"] = 8 * MIB
        wait_until(lambda: promoted(pager) == 8 * MIB, what="as much as fits")
        asked_again(node)
        assert (handle.tier, handle.reason) == ("mixed", "no_room")
        assert torch.equal(handle.fetch(), tensor)
        assert pager.stats()["host_bytes"] == 12 * MIB


def test_the_daemon_hears_of_all_that_is_wanted() -> None:
    """What lies in the host counts, and so does what is being offloaded."""
    node = full_node()
    with paging(node) as pager:
        first = park(pager, random_bytes(10 * MIB))
        asked_again(node)
        assert node.wanted[-1] == 10 * MIB
        node.asked.clear()
        second = park(pager, random_bytes(6 * MIB))
        assert 16 * MIB in node.wanted
        asked_again(node)
        assert node.wanted[-1] == 16 * MIB
        assert {first.tier, second.tier} == {"host"}


def test_each_class_has_its_turn_when_the_other_is_refused() -> None:
    """`cache` needs no room in the host: it comes back though `store` may not."""
    node = full_node()
    with paging(node) as pager:
        stored, cached = (
            park(pager, random_bytes(SMALL)),
            park(pager, random_bytes(9), keep="cache"),
        )
        node.refusals[SafetyClass.STORE] = "no_host_room"
        node.gpu_bytes["SHM-1"] = 64 * MIB
        on_peer(cached)
        assert stored.tier == "host"


def test_what_was_just_moved_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds long; then it is brought back like anything else."""
    node = FakeNode(gpu_bytes={"SHM-1": 64 * MIB})
    with paging(node) as pager:
        evacuated = park(pager, random_bytes(MIB))
        wait_acknowledged(node, node.revoke("SHM-1"))
        assert evacuated.tier == "host"
        other = park(pager, random_bytes(SMALL))
        node.gpu_bytes["SHM-1"] = 64 * MIB
        on_peer(other)
        assert evacuated.tier == "host"
        monkeypatch.setattr(slabs, "SETTLED_SECONDS", 0.0)
        on_peer(evacuated)
        assert torch.equal(evacuated.fetch(), random_bytes(MIB))


def test_what_was_just_brought_back_goes_to_the_host_when_it_has_to_go() -> None:
    """Although another GPU has room: so it is not moved about between owners."""
    node = two_gpus(0)
    with paging(node) as pager:
        handle = park(pager, random_bytes(MIB))
        node.gpu_bytes["SHM-1"] = 64 * MIB
        on_peer(handle)
        node.gpu_bytes["SHM-2"] = 64 * MIB
        wait_acknowledged(node, node.revoke("SHM-1"))
        assert (handle.tier, handle.reason) == ("host", "reclaim")
        assert torch.equal(handle.fetch(), random_bytes(MIB))


class HeldCopies:
    """Holds down the copy of a promotion; what is evacuated meanwhile goes on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self._copy = moving.copy_piece
        monkeypatch.setattr(moving, "copy_piece", self._held)

    def _held(self, streams: Streams | None, source: Place, targets: Sequence[Place]) -> None:
        if source.slab is None:
            self.begun.set()
            assert self.go_on.wait(10.0)
        self._copy(streams, source, targets)


def test_it_is_read_where_it_was_until_it_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch neither waits for the copy nor spoils it."""
    node = full_node()
    tensor = random_bytes(MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        copies = HeldCopies(monkeypatch)
        node.gpu_bytes["SHM-1"] = 64 * MIB
        assert copies.begun.wait(10.0)
        assert torch.equal(handle.fetch(), tensor)
        assert handle.tier == "host"
        copies.go_on.set()
        on_peer(handle)
        assert torch.equal(handle.fetch(), tensor)


def test_a_revoke_cancels_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays in the host, and the slab goes back with nothing to be moved."""
    node = full_node()
    tensor = random_bytes(MIB)
    with paging(node) as pager:
        handle = park(pager, tensor)
        copies = HeldCopies(monkeypatch)
        node.gpu_bytes["SHM-1"] = 64 * MIB
        assert copies.begun.wait(10.0)
        revoked = node.revoke("SHM-1")
        copies.go_on.set()
        wait_acknowledged(node, revoked)
        assert handle.tier == "host"
        assert (promoted(pager), pager.stats()["evacuated_bytes"]) == (0, 0)
        assert torch.equal(handle.fetch(), tensor)


def test_what_is_released_meanwhile_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither here nor there."""
    node = full_node()
    with paging(node) as pager:
        handle = park(pager, random_bytes(MIB))
        copies = HeldCopies(monkeypatch)
        node.gpu_bytes["SHM-1"] = 64 * MIB
        assert copies.begun.wait(10.0)
        handle.release()
        copies.go_on.set()
        wait_until(lambda: pager.stats()["host_bytes"] == 0, what="the host's is free")
        wait_until(lambda: pager.stats()["peer_bytes"] == 0, what="the slab's is free")


def test_a_copy_that_fails_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again later."""
    node = full_node()
    copy = moving.copy_piece
    failures = [RuntimeError("the device has failed")] * 3

    def fail(streams: Streams | None, source: Place, targets: Sequence[Place]) -> None:
        if failures:
            raise failures.pop()
        copy(streams, source, targets)

    with paging(node) as pager:
        handle = park(pager, random_bytes(MIB))
        monkeypatch.setattr(moving, "copy_piece", fail)
        node.gpu_bytes["SHM-1"] = 64 * MIB
        on_peer(handle)
        assert failures == []
        assert torch.equal(handle.fetch(), random_bytes(MIB))


def test_nothing_is_put_into_leases_while_the_daemon_is_gone() -> None:
    """They may have lapsed by then."""
    node = FakeNode(gpu_bytes={"SHM-1": 4 * MIB})
    with paging(node) as pager:
        kept, waiting = park(pager, random_bytes(3 * MIB)), park(pager, random_bytes(2 * MIB))
        node.unreachable = "lost"
        kept.release()
        looked = pager._worker._promotion._due_at
        wait_until(lambda: pager._worker._promotion._due_at > looked, what="it has looked")
        assert waiting.tier == "host"
        node.unreachable = ""
        on_peer(waiting)
