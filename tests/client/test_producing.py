"""A producer: lends, takes back, and says clearly why it can't."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import grpc
import pytest
from aqua_protos import broker_pb2

from aqua_client.errors import BrokerUnreachable, InvalidRequest, NotAnOwner, Refused
from aqua_client.producing import Producer, producer
from aqua_client.settings import ClientSettings
from tests.fakes.broker_books import MIB
from tests.fakes.broker_server import FakeDaemon
from tests.nodes import wait_until


@pytest.fixture
def mine(daemon: FakeDaemon, settings: ClientSettings) -> Iterator[Producer]:
    """A producer of SHM-1 at a daemon that says yes."""
    assert daemon.path == settings.socket_path
    with producer("SHM-1", settings=settings) as made:
        yield made


def offers(daemon: FakeDaemon) -> list[int]:
    return [call.nbytes for _, call in daemon.calls if isinstance(call, broker_pb2.OfferRequest)]


def test_lending_offers_the_bytes_of_that_gpu(mine: Producer, daemon: FakeDaemon) -> None:
    """The daemon is told which GPU and how much, by a session without a home GPU."""
    result = mine.lend(64 * MIB)
    assert (result.offered_bytes, result.lent_bytes) == (64 * MIB, 0)
    ((name, call),) = daemon.calls
    assert isinstance(call, broker_pb2.OfferRequest)
    assert (name, call.gpu, call.nbytes) == ("Offer", "SHM-1", 64 * MIB)
    assert daemon.hellos[0].home_gpu == ""


def test_reclaiming_tells_what_came_back(mine: Producer, daemon: FakeDaemon) -> None:
    """Every figure, and whether that is all."""
    result = mine.reclaim(8 * MIB, deadline=1.5)
    assert (result.asked_bytes, result.revoked_bytes) == (8 * MIB, 9 * MIB)
    assert (result.freed_bytes, result.quarantined_bytes) == (8 * MIB, MIB)
    assert result.seconds == 0.25
    assert not result.complete
    call = daemon.calls[-1][1]
    assert isinstance(call, broker_pb2.ReclaimRequest)
    assert (call.gpu, call.nbytes, call.deadline_seconds) == ("SHM-1", 8 * MIB, 1.5)


def test_without_a_deadline_the_daemon_chooses(mine: Producer, daemon: FakeDaemon) -> None:
    """0 on the wire."""
    mine.reclaim(MIB)
    call = daemon.calls[-1][1]
    assert isinstance(call, broker_pb2.ReclaimRequest)
    assert call.deadline_seconds == 0.0


def test_a_process_that_does_not_use_the_gpu_is_told_so(mine: Producer, daemon: FakeDaemon) -> None:
    """NotAnOwner, naming the GPU and what to do."""
    refusal = (grpc.StatusCode.PERMISSION_DENIED, "not_permitted")
    daemon.refuse = {"Offer": refusal, "Reclaim": refusal}
    with pytest.raises(NotAnOwner, match="memory of its own on SHM-1"):
        mine.lend(MIB)
    with pytest.raises(NotAnOwner, match="memory of its own on SHM-1"):
        mine.reclaim(MIB)


def test_other_refusals_keep_their_reason(mine: Producer, daemon: FakeDaemon) -> None:
    """What the daemon says is passed on."""
    daemon.refuse["Offer"] = (grpc.StatusCode.INVALID_ARGUMENT, "invalid")
    with pytest.raises(Refused) as caught:
        mine.lend(MIB)
    assert caught.value.reason == "invalid"


@pytest.mark.parametrize("nbytes", [-1, 1.5, True, "1GiB", 2**63, None])
def test_bytes_that_are_none_are_refused_here(
    mine: Producer, daemon: FakeDaemon, nbytes: int
) -> None:
    """Before anybody is asked, with what is allowed."""
    for ask in (mine.lend, mine.reclaim):
        with pytest.raises(InvalidRequest, match="whole number"):
            ask(nbytes)
    assert daemon.calls == []


@pytest.mark.parametrize("deadline", [0.0, -1.0, float("nan"), float("inf")])
def test_deadlines_that_are_none_are_refused_here(mine: Producer, deadline: float) -> None:
    """A deadline of 0 would mean the daemon's own on the wire."""
    with pytest.raises(InvalidRequest, match="deadline"):
        mine.reclaim(MIB, deadline=deadline)
    with pytest.raises(InvalidRequest, match="nbytes=0"):
        mine.reclaim(0)


def test_without_a_daemon_there_is_no_producer(settings: ClientSettings) -> None:
    """Nobody to lend to: the error names the socket and the reason."""
    with pytest.raises(BrokerUnreachable, match=r"aqua\.sock.*no_daemon") as caught:
        producer("SHM-1", settings=replace(settings, connect_seconds=0.5))
    assert caught.value.reason == "no_daemon"


def test_the_next_daemon_hears_the_offer_again(
    mine: Producer, daemon: FakeDaemon, settings: ClientSettings
) -> None:
    """Else it would lend as if nothing had been said."""
    mine.lend(32 * MIB)
    daemon.die()
    with FakeDaemon(settings.socket_path, daemon.books) as second:
        wait_until(lambda: offers(second) == [32 * MIB], what="the offer again")
        mine.reclaim(8 * MIB)
        second.die()
        with FakeDaemon(settings.socket_path, daemon.books) as third:
            wait_until(lambda: offers(third) == [0], what="what came back is not lent again")
            mine.close()


def test_closing_ends_the_session(mine: Producer, daemon: FakeDaemon) -> None:
    """The offer ends with it; twice is once."""
    mine.close()
    wait_until(lambda: daemon.goodbyes, what="goodbye")
    mine.close()
    with pytest.raises(BrokerUnreachable) as caught:
        mine.lend(MIB)
    assert caught.value.reason == "closed"
