"""A reclaim: how far it has come, and by what name it ended."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from aqua_protos import broker_pb2

from aqua_client.producing import Producer, producer
from aqua_client.records import GpuBytes, ReclaimProgress
from aqua_client.settings import ClientSettings
from aqua_client.wire import Malformed, gpu_bytes_call
from tests.fakes.broker_books import MIB
from tests.fakes.broker_server import FakeDaemon
from tests.nodes import wait_until


@pytest.fixture
def mine(daemon: FakeDaemon, settings: ClientSettings) -> Iterator[Producer]:
    """A producer of SHM-1."""
    assert daemon.path == settings.socket_path
    with producer("SHM-1", settings=settings) as made:
        yield made


def gpu(lent: int, returning: int = 0, quarantined: int = 0) -> broker_pb2.GpuState:
    return broker_pb2.GpuState(
        gpu="SHM-1",
        lent_bytes=lent * MIB,
        returning_bytes=returning * MIB,
        quarantined_bytes=quarantined * MIB,
    )


def test_who_watches_sees_memory_come_back(mine: Producer, daemon: FakeDaemon) -> None:
    """What is held falls; what is freed only grows, and in the end is what the daemon says."""
    daemon.gpus = [gpu(12), gpu(8, 4), gpu(8), gpu(9), gpu(0, 4)]
    daemon.reclaims_may_end.clear()
    seen: list[ReclaimProgress] = []

    def watch(progress: ReclaimProgress) -> None:
        seen.append(progress)
        if len(seen) == 4:
            daemon.reclaims_may_end.set()

    result = mine.reclaim(12 * MIB, deadline=5.0, on_progress=watch)
    freed = [one.freed_bytes // MIB for one in seen]
    assert freed[:4] == [0, 4, 4, 8]
    assert freed == sorted(freed)
    assert seen[-1].freed_bytes == result.freed_bytes == 12 * MIB
    assert (seen[0].lent_bytes, seen[0].returning_bytes) == (8 * MIB, 4 * MIB)
    assert {one.asked_bytes for one in seen} == {12 * MIB}
    looks = [call for name, call in daemon.calls if name == "GetState"]
    assert {getattr(call, "gpu", "") for call in looks} == {"SHM-1"}


def test_without_a_look_there_is_still_a_result(mine: Producer, daemon: FakeDaemon) -> None:
    """And one last word of progress."""
    daemon.refuse["GetState"] = (grpc.StatusCode.UNAVAILABLE, "")
    seen: list[ReclaimProgress] = []
    result = mine.reclaim(8 * MIB, on_progress=seen.append)
    assert [one.freed_bytes for one in seen] == [8 * MIB]
    assert result.outcome == "partial"
    assert mine.lend(MIB).offered_bytes == MIB  # looks that fail do not count against the daemon


def test_what_a_watcher_raises_ends_the_waiting(mine: Producer, daemon: FakeDaemon) -> None:
    """The caller's own thread, the caller's own error."""
    daemon.reclaims_may_end.clear()

    class Enough(Exception):
        pass

    def watch(_progress: ReclaimProgress) -> None:
        raise Enough

    with pytest.raises(Enough):
        mine.reclaim(MIB, on_progress=watch)
    daemon.reclaims_may_end.set()


@pytest.mark.parametrize(
    ("revoked", "freed", "quarantined", "outcome", "complete"),
    [
        (12, 12, 0, "complete", True),
        (12, 8, 4, "partial", False),
        (12, 0, 12, "partial", False),
        (0, 0, 0, "nothing_lent", True),
    ],
)
def test_what_the_daemon_answers_has_a_name(
    mine: Producer,
    daemon: FakeDaemon,
    revoked: int,
    freed: int,
    quarantined: int,
    outcome: str,
    *,
    complete: bool,
) -> None:
    """Partial success is one of them."""
    daemon.reclaimed = broker_pb2.ReclaimReply(
        asked_bytes=10, revoked_bytes=revoked, freed_bytes=freed, quarantined_bytes=quarantined
    )
    result = mine.reclaim(10)
    assert (result.outcome, result.complete) == (outcome, complete)
    assert result.error is None
    assert mine.stats()["freed_bytes"] == freed
    assert mine.stats()["quarantined_bytes"] == quarantined


def test_a_refusal_and_silence_are_results(
    mine: Producer, daemon: FakeDaemon, settings: ClientSettings
) -> None:
    """With the error that says why; no byte is claimed."""
    daemon.refuse["Reclaim"] = (grpc.StatusCode.INVALID_ARGUMENT, "invalid")
    result = mine.reclaim(MIB)
    assert (result.outcome, result.complete, result.freed_bytes) == ("refused", False, 0)
    assert getattr(result.error, "reason", "") == "invalid"
    daemon.die()
    wait_until(lambda: not mine.stats()["attached"], what="the daemon is known to be gone")
    for watcher in (None, lambda _progress: None):
        result = mine.reclaim(MIB, deadline=0.5, on_progress=watcher)
        assert (result.outcome, result.complete, result.asked_bytes) == ("unreachable", False, MIB)
    with FakeDaemon(settings.socket_path, daemon.books) as second:
        wait_until(lambda: second.calls, what="the next one hears that nothing is to be lent")
        ((name, offer),) = second.calls
        assert (name, getattr(offer, "nbytes", None)) == ("Offer", 0)
        mine.close()


def test_a_daemon_that_hangs_is_waited_for_no_longer_than_was_said(
    mine: Producer, daemon: FakeDaemon
) -> None:
    """Watched or not: then it is unreachable, and no byte is claimed."""
    seen: list[ReclaimProgress] = []
    daemon.hangs = True
    result = mine.reclaim(MIB, deadline=0.1, on_progress=seen.append)
    assert (result.outcome, result.freed_bytes) == ("unreachable", 0)
    assert seen == []
    assert result.seconds < 20.0
    assert mine.reclaim(MIB, deadline=0.1).outcome == "unreachable"


def test_an_older_daemon_that_shows_every_gpu_is_read() -> None:
    """One that does not know the GPU is no news at all."""
    call = gpu_bytes_call("SHM-1")
    reply = broker_pb2.GetStateReply(gpus=[broker_pb2.GpuState(gpu="SHM-0"), gpu(3, 2, 1)])
    assert call.decode(reply.SerializeToString()) == GpuBytes(
        lent_bytes=3 * MIB, returning_bytes=2 * MIB, quarantined_bytes=MIB
    )
    with pytest.raises(Malformed, match="SHM-1"):
        call.decode(b"")
