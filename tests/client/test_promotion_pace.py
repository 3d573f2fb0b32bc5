"""How fast what lies in the host comes back to leases: never in the way of fetches, calls or revokes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from aqua_client import moving, promotion
from aqua_client.slabs import Place
from aqua_client.streams import Streams
from tests.client.pagers import paging, park, random_bytes
from tests.client.test_promotion import (
    SMALL,
    HeldCopies,
    asked_again,
    full_node,
    often,
    on_peer,
)
from tests.fakes.session import MIB, FakeNode
from tests.fakes.streams import FakeStreams
from tests.nodes import wait_until

__all__ = ["often"]  # a fixture that each of them uses


def looks(mover: promotion.Promotion) -> None:
    """Return when it has looked some times more."""
    for _ in range(5):
        due = mover._due_at
        wait_until(lambda due=due: mover._due_at > due, what="it looks")  # type: ignore[misc] # a default binds it


def test_it_asks_less_and_less_often_for_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a slab comes; then it is as before."""
    monkeypatch.setattr(promotion, "LONGEST_PAUSE_SECONDS", 0.16)
    node = full_node()
    with paging(node) as pager:
        handle = park(pager, random_bytes(SMALL))
        mover = pager._worker._promotion
        for _ in range(2):
            asked_again(node)
        assert mover._pause == 0.16
        node.gpu_bytes["SHM-1"] = 64 * MIB
        on_peer(handle)
        assert mover._pause == promotion.FIRST_PAUSE_SECONDS


def test_until_then_it_does_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it looks for room in what is held."""
    monkeypatch.setattr(promotion, "FIRST_PAUSE_SECONDS", 3600.0)
    monkeypatch.setattr(promotion, "LONGEST_PAUSE_SECONDS", 7200.0)
    monkeypatch.setattr("aqua_client.borrowing.BACK_OFF_SECONDS", 0.0)
    node = full_node()
    with paging(node) as pager:
        handle = park(pager, random_bytes(SMALL))
        mover = pager._worker._promotion
        wait_until(lambda: mover._pause == 7200.0, what="it was refused once")
        asked = len(node.asked)
        looks(mover)
        assert (handle.tier, len(node.asked)) == ("host", asked)


def test_it_waits_for_fetches_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch a moment ago puts it off, though there is room, until that has lasted."""
    node = FakeNode(gpu_bytes={"SHM-1": 4 * MIB})
    with paging(node) as pager:
        first, handle = park(pager, random_bytes(3 * MIB)), park(pager, random_bytes(2 * MIB))
        monkeypatch.setattr(promotion, "QUIET_SECONDS", 1e-3)
        monkeypatch.setattr(promotion, "LONGEST_YIELD_SECONDS", 3600.0)
        tiers, mover = pager._tiers, pager._worker._promotion
        with tiers.lock:
            mover._yields_until = time.monotonic() + 3600.0
            tiers.fetched_at = time.monotonic() + 3600.0  # all the time
        first.release()
        looks(mover)
        assert handle.tier == "host"
        monkeypatch.setattr(promotion, "LONGEST_YIELD_SECONDS", 0.0)
        mover._yields_until = 0.0
        on_peer(handle)


def test_it_takes_its_share_of_the_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step, and after it a rest by how long that took, in which nothing is moved."""
    monkeypatch.setattr(promotion, "SHARE", 1000)
    node = full_node()
    with paging(node) as pager:
        handles = [park(pager, random_bytes(4 * MIB, seed=seed)) for seed in range(2)]
        copies = HeldCopies(monkeypatch)
        node.gpu_bytes["SHM-1"] = 64 * MIB
        assert copies.begun.wait(10.0)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 0.1, what="the copy takes its time")
        copies.go_on.set()
        tiers, mover = pager._tiers, pager._worker._promotion
        wait_until(lambda: mover._due_at > began + 0.1 * 999, what="it rests")
        assert {handle.tier for handle in handles} == {"host", "peer"}
        with tiers.lock:
            mover._due_at = 0.0
            tiers.wake_worker()
        wait_until(lambda: {handle.tier for handle in handles} == {"peer"}, what="both are")


def test_news_ends_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that are asked back meanwhile wait for one piece, and not for all that are chosen."""
    monkeypatch.setattr(promotion, "STEP_BYTES", 2**40)
    node = full_node()
    copy, acknowledged = moving.copy_piece, []

    def revoking(streams: Streams | None, source: Place, targets: Sequence[Place]) -> None:
        acknowledged.append(len(node.acknowledged))
        if len(acknowledged) == 1:
            node.revoke("SHM-1", ["0" * 32])
            node.gpu_bytes["SHM-1"] = 64 * MIB
        copy(streams, source, targets)

    with paging(node) as pager:
        handles = [park(pager, random_bytes(MIB, seed=seed)) for seed in range(3)]
        monkeypatch.setattr(moving, "copy_piece", revoking)
        node.gpu_bytes["SHM-1"] = 64 * MIB
        wait_until(lambda: {handle.tier for handle in handles} == {"peer"}, what="all are there")
    assert acknowledged == [0, 1, 1]


def test_what_is_still_being_written_waits() -> None:
    """A copy into the host that was only enqueued would be overtaken."""
    streams, node = FakeStreams(), FakeNode(gpu_bytes={"SHM-1": 4 * MIB})
    with paging(node, streams=streams) as pager:
        first = park(pager, random_bytes(3 * MIB))
        streams.finish_all()
        handle = park(pager, random_bytes(2 * MIB))
        first.release()
        wait_until(lambda: pager.stats()["peer_bytes"] == 0, what="there is room")
        looks(pager._worker._promotion)
        assert handle.tier == "host"
        streams.finish_all()
        on_peer(handle)
