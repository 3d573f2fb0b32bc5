"""Who asks whether copies in flight are over: no stuck stream, hung driver or other thread hurts."""

from __future__ import annotations

import threading
import time
import warnings

import pytest
import torch

from aqua_client import copying, in_flight, tensors
from aqua_client.counters import Counters
from aqua_client.fallback import AquaWarning
from aqua_client.in_flight import UNDONE_A_LOOK
from aqua_client.records import SafetyClass
from aqua_client.slabs import Place, Stored
from aqua_client.tiers import Tiers
from tests.client.pagers import paging, random_bytes, two_gpus
from tests.fakes.session import MIB
from tests.fakes.streams import FakeEvent, FakeStreams
from tests.nodes import wait_until


def stored_in_flight(tiers: Tiers, event: FakeEvent) -> Place:
    """A place of the host, whose writing has just been enqueued."""
    stored = Stored(16, SafetyClass.STORE)
    place = Place(copying.Memory.of_host(16), 0, 16, stored, None)
    with tiers.lock:
        tiers.host.claim(16)
        tiers.unpin([place], event)
    return place


def test_a_stream_that_is_stuck_keeps_nobody_elses() -> None:
    """However many wait there, others are asked in their turn."""
    tiers = Tiers(host_limit_bytes=MIB, counters=Counters())
    stuck = [FakeEvent() for _ in range(5 * UNDONE_A_LOOK)]
    for event in stuck:
        stored_in_flight(tiers, event)
    done = [stored_in_flight(tiers, FakeEvent(is_done=True)) for _ in range(UNDONE_A_LOOK)]
    looks = [in_flight.land(tiers) for _ in range(6)]
    assert looks.count(True) == 1
    assert [place.pins for place in done] == [0] * len(done)
    assert len(tiers.flights) == len(stuck)
    assert max(len(event.asked_by) for event in stuck) <= 2


def test_a_look_that_is_broken_off_forgets_none() -> None:
    """An interrupt may come while an event is asked."""

    class Interrupting(FakeEvent):
        def is_done(self) -> bool:
            raise KeyboardInterrupt

    tiers = Tiers(host_limit_bytes=MIB, counters=Counters())
    first = stored_in_flight(tiers, FakeEvent(is_done=True))
    stored_in_flight(tiers, Interrupting())
    stored_in_flight(tiers, FakeEvent())
    with pytest.raises(KeyboardInterrupt):
        in_flight.land(tiers)
    assert first.pins == 0
    assert len(tiers.flights) == 2


def test_a_driver_that_hangs_keeps_only_who_asked_it() -> None:
    """Another thread that looks goes on, and its own copies stay what they are."""
    asked, let_go = threading.Event(), threading.Event()

    class Hanging(FakeEvent):
        def is_done(self) -> bool:
            asked.set()
            return let_go.wait(20)

    tiers = Tiers(host_limit_bytes=MIB, counters=Counters())
    place = stored_in_flight(tiers, Hanging())
    thread = threading.Thread(target=in_flight.land, args=(tiers,))
    thread.start()
    assert asked.wait(20)
    start = time.monotonic()
    assert not in_flight.land(tiers)
    assert time.monotonic() - start < 5
    assert place.pins == 1
    let_go.set()
    thread.join()
    assert place.pins == 0


@pytest.mark.limit(90)
def test_threads_events_and_revokes_together_lose_no_byte() -> None:
    """At no time is a place free, or a slab unmapped, that a copy in flight touches."""
    streams, node = FakeStreams(), two_gpus(each_bytes=48 * MIB)
    stop, faults = threading.Event(), list[str]()

    with warnings.catch_warnings(), paging(node, streams=streams) as pager:
        warnings.simplefilter("ignore", AquaWarning)

        def work(number: int) -> None:
            turn = 0
            while not stop.is_set():
                tensor = random_bytes(300_000 + number, seed=turn)
                handle = tensors.offload(pager, tensor, "store", overlap=turn % 3 == 0)
                if not torch.equal(handle.fetch(), tensor):
                    faults.append("other bytes")
                handle.release()
                turn += 1

        def check() -> None:
            with pager._tiers.lock:
                for flight in pager._tiers.flights:
                    for place in flight.places:
                        slab = place.slab
                        if slab and (
                            place not in slab.places or slab.lease_id not in pager._tiers.slabs
                        ):
                            faults.append("given back while a copy was in flight")

        def is_acknowledged(lease_ids: tuple[str, ...]) -> bool:
            streams.finish_all()
            check()
            return set(lease_ids) <= set(node.acknowledged)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for round_ in range(60):
            wait_until(lambda: len(streams.events) > 10, what="work goes on")
            check()
            with streams.lock:
                half, streams.events = streams.events[::2], streams.events[1::2]
            for event in half:
                event.finish()
            if round_ % 12 == 0:
                gpu = "SHM-1" if round_ % 24 == 0 else "SHM-2"
                revoked = node.revoke(gpu)
                wait_until(lambda: is_acknowledged(revoked), what="acknowledged")  # noqa: B023 - waited for in this round
                node.gpu_bytes[gpu] = 48 * MIB
        stop.set()
        for thread in threads:
            thread.join()
        streams.finish_all()
        assert faults == []
