"""A revoke that names a slab in use beside an empty one: the empty one goes, and nothing is copied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from aqua_protos import broker_pb2, presence_pb2
from aqua_protos.agreement import FRAMED_METHODS, LEASE_EXCHANGE

from aqua_client.pager import Pager
from aqua_client.records import Welcome
from aqua_client.tensors import OffloadedTensor
from aqua_client.wire import exchange_call
from aqua_client.wire_frames import parse_daemon_frame
from tests.client.pagers import paging, park, random_bytes, wait_acknowledged
from tests.fakes.session import MIB, FakeNode
from tests.nodes import wait_until

NBYTES = 3 * MIB


class Beside:
    """A pager that holds a full slab and an empty one of the same GPU."""

    def __init__(self, node: FakeNode, pager: Pager) -> None:
        self.node, self.pager = node, pager
        self.tensor = random_bytes(NBYTES)
        self.handle = park(pager, self.tensor)
        [self.full] = node.ids_on("SHM-1")
        park(pager, self.tensor).release()
        [self.empty] = [one for one in node.ids_on("SHM-1") if one != self.full]

    def revoke(self, seconds: float = 2.0) -> None:
        self.node.revoke("SHM-1", [self.full], seconds=seconds)

    def push_empty(self) -> None:
        self.node.revoke("SHM-1", [self.empty])

    def stats(self, name: str) -> object:
        return self.pager.stats()[name]

    def is_kept(self, handle: OffloadedTensor | None = None) -> bool:
        """The bytes are where they were, and nothing was copied."""
        handle = handle or self.handle
        same = torch.equal(handle.fetch(), self.tensor)
        return same and handle.tier == "peer" and not self.stats("evacuated_bytes")


@contextmanager
def beside(*, takes_exchanges: bool = True) -> Iterator[Beside]:
    node = FakeNode(takes_exchanges=takes_exchanges, largest_slab_bytes=4 * MIB)
    with paging(node) as pager:
        yield Beside(node, pager)


def test_the_empty_slab_goes_back_and_no_byte_is_copied() -> None:
    """The full one is in use again, as it was: also for what comes later."""
    with beside() as held:
        held.revoke()
        wait_acknowledged(held.node, (held.empty,))
        assert held.node.exchanged == [((held.full,), (held.empty,))]
        assert held.is_kept()
        assert held.stats("leases_exchanged") == 1
        assert held.node.ids_on("SHM-1") == (held.full,)
        more = park(held.pager, random_bytes(MIB))
        assert (more.tier, held.node.ids_on("SHM-1")) == ("peer", (held.full,))


def test_a_daemon_that_does_not_know_it_is_not_asked() -> None:
    """An older release: what it asks for is evacuated."""
    with beside(takes_exchanges=False) as held:
        held.revoke()
        wait_acknowledged(held.node, (held.full,))
        assert held.node.exchanged == []
        assert torch.equal(held.handle.fetch(), held.tensor)


@pytest.mark.parametrize("reason", ["exchange_late", "invalid"])
def test_a_refusal_ends_it_and_the_empty_slab_is_of_use_again(reason: str) -> None:
    """What was asked for is evacuated, as if nothing had been offered."""
    with beside() as held:
        held.node.exchange_refusal = reason
        held.revoke()
        wait_acknowledged(held.node, (held.full,))
        assert torch.equal(held.handle.fetch(), held.tensor)
        assert held.stats("leases_exchanged") == 0
        assert held.node.ids_on("SHM-1") == (held.empty,)
        more = park(held.pager, held.tensor)
        assert (more.tier, held.node.ids_on("SHM-1")) == ("peer", (held.empty,))


def test_no_answer_is_a_refusal() -> None:
    """The daemon may have taken it, and then asks for the other one itself: both go back."""
    with beside() as held:

        def fall_silent() -> None:
            held.node.unreachable = "timeout"

        held.node.exchange_answers = fall_silent
        held.node.exchange_refusal = "unanswered"
        held.revoke()
        wait_until(lambda: held.node.exchanged, what="asked")
        held.node.unreachable = ""
        wait_until(lambda: held.handle.tier == "host", what="evacuated")
        held.node.revoke("SHM-1", [held.empty])
        wait_acknowledged(held.node, (held.empty,))
        assert torch.equal(held.handle.fetch(), held.tensor)


def test_what_is_asked_for_again_meanwhile_is_not_kept() -> None:
    """The answer and another revoke crossed: whichever is the later, it goes back."""
    with beside() as held:
        held.node.exchange_answers = held.revoke
        held.revoke()
        wait_acknowledged(held.node, (held.full, held.empty))
        assert torch.equal(held.handle.fetch(), held.tensor)
        assert held.handle.tier == "host"


def test_the_push_of_what_was_taken_changes_nothing() -> None:
    """It comes before the answer, or after it: the slab is on its way back already."""
    with beside() as held:
        held.node.exchange_answers = held.push_empty
        held.revoke()
        wait_acknowledged(held.node, (held.empty,))
        assert held.node.exchanged == [((held.full,), (held.empty,))]
        assert held.is_kept()
        assert held.node.ids_on("SHM-1") == (held.full,)


def test_nothing_comes_into_what_is_offered() -> None:
    """A tensor that is offloaded while the daemon is asked goes elsewhere: it would be copied at once."""
    with beside() as held:
        held.node.gpu_bytes["SHM-2"] = 64 * MIB
        parked: list[OffloadedTensor] = []
        held.node.exchange_answers = lambda: parked.append(park(held.pager, held.tensor))
        held.revoke()
        wait_acknowledged(held.node, (held.empty,))
        assert held.is_kept()
        assert held.is_kept(parked[0])
        assert len(held.node.ids_on("SHM-2")) == 1


@pytest.mark.parametrize("reason", ["drain", "owner", "lapsed", "unclaimed"])
def test_where_just_these_are_wanted_nothing_is_offered(reason: str) -> None:
    """No other would do: the daemon is not asked."""
    with beside() as held:
        held.node.revoke_reason = reason
        held.revoke()
        wait_acknowledged(held.node, (held.full,))
        assert held.node.exchanged == []


def test_a_revoke_without_time_is_served_as_it_is() -> None:
    """There is none to ask in."""
    with beside() as held:
        held.revoke(seconds=0.0)
        wait_acknowledged(held.node, (held.full,))
        assert held.node.exchanged == []


def test_a_lost_slab_is_not_in_use_again() -> None:
    """Its keeper died while the daemon was asked."""
    with beside() as held:
        held.node.exchange_answers = lambda: held.node.listener.leases_lost([held.full], "lost")
        held.revoke()
        wait_acknowledged(held.node, (held.empty,))
        assert held.handle.tier == "lost"
        wait_until(lambda: not held.pager.stats()["leases"], what="both closed")


def test_an_exchange_names_what_is_kept_and_what_is_given() -> None:
    """As the daemon reads it; its answer is what is revoked now."""
    call = exchange_call("r", ["full"], ["empty", "other"])
    said = broker_pb2.ExchangeRequest.FromString(call.payload)
    assert call.method == "Exchange"
    assert call.method in FRAMED_METHODS  # a worker that exchanges opens no gRPC channel
    assert (said.request_id, list(said.spared_lease_ids)) == ("r", ["full"])
    assert list(said.offered_lease_ids) == ["empty", "other"]
    reply = broker_pb2.ExchangeReply(spared_lease_ids=["full"], revoked_lease_ids=["empty"])
    assert call.decode(reply.SerializeToString()) == {"empty"}


@pytest.mark.parametrize(("features", "takes"), [([], False), (["x", LEASE_EXCHANGE], True)])
def test_a_welcome_says_whether_the_daemon_knows_of_it(features: list[str], takes: bool) -> None:  # noqa: FBT001 - drawn
    """An older daemon names no such feature."""
    welcome = presence_pb2.Welcome(
        protocol=1,
        features=features,
        session_id="s",
        token=b"t",
        term_seconds=10.0,
        smallest_slab_bytes=4 * MIB,
        largest_slab_bytes=4 * MIB,
    )
    payload = presence_pb2.DaemonFrame(welcome=welcome).SerializeToString()
    frame = parse_daemon_frame(payload, now=0.0)
    assert isinstance(frame, Welcome)
    assert frame.takes_exchanges is takes
