"""Reports: decided at once, carried out in the background, never an error in the engine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import grpc
import pytest
from aqua_protos import broker_pb2

from aqua_client.errors import BrokerUnreachable, InvalidRequest
from aqua_client.informing import (
    BatchFigures,
    Decision,
    Figures,
    Lend,
    LlmFigures,
    LlmInformer,
    LlmThresholds,
    Margins,
    Nothing,
    Reclaim,
)
from aqua_client.producing import Producer, producer
from aqua_client.reporting import REST_SECONDS, Reporter
from aqua_client.settings import ClientSettings
from tests.fakes.broker_books import MIB
from tests.fakes.broker_server import FakeDaemon
from tests.fakes.clock import FakeClock
from tests.nodes import wait_until

CALM = LlmFigures(pending_requests=0, kv_used_bytes=16 * MIB, kv_total_bytes=64 * MIB)
BURST = replace(CALM, pending_requests=10)
LEND, RECLAIM = Lend(nbytes=40 * MIB, reason="spare"), Reclaim(nbytes=40 * MIB, reason="pending")


class Scripted:
    """An informer that decides what it is told to, then nothing."""

    def __init__(self, *script: Decision | Exception) -> None:
        self.script = list(script)
        self.offered: list[int] = []

    def decide(self, figures: Figures, *, offered_bytes: int, now: float) -> Decision:
        del figures, now
        self.offered.append(offered_bytes)
        decision = self.script.pop(0) if self.script else Nothing(reason="script")
        if isinstance(decision, Exception):
            raise decision
        return decision


@contextmanager
def producing(settings: ClientSettings, *script: Decision | Exception) -> Iterator[Producer]:
    with producer("SHM-1", informer=Scripted(*script), settings=settings) as made:
        yield made


def said(daemon: FakeDaemon) -> list[tuple[str, int]]:
    return [
        (name, call.nbytes)
        for name, call in daemon.calls
        if isinstance(call, broker_pb2.OfferRequest | broker_pb2.ReclaimRequest)
    ]


def test_a_decision_to_lend_is_carried_out_in_the_background(
    daemon: FakeDaemon, settings: ClientSettings
) -> None:
    """The informer's next decision knows of it at once."""
    informer = Scripted(LEND)
    with producer("SHM-1", informer=informer, settings=settings) as mine:
        assert mine.report(CALM) == LEND
        assert mine.report(CALM) == Nothing(reason="script")
        assert informer.offered == [0, 40 * MIB]
        wait_until(lambda: mine.stats()["offered_bytes"] == 40 * MIB, what="it is offered")
        assert said(daemon) == [("Offer", 40 * MIB)]
        stats = mine.stats()
        assert stats["decisions"] == {"lend": 1, "reclaim": 0, "nothing": 1}
        assert stats["last_decision"] == f"lend {40 * MIB} (spare)"
        assert stats["report_failures"] == {}


def test_what_is_lent_beyond_a_lowered_offer_is_taken_back(
    daemon: FakeDaemon, settings: ClientSettings
) -> None:
    """No more than that: an offer that nobody has used costs nobody anything."""
    daemon.lent_bytes = [0, 24 * MIB, 8 * MIB, 0]
    with producing(settings, LEND, replace(RECLAIM, nbytes=30 * MIB)) as mine:
        mine.report(CALM)
        wait_until(lambda: len(said(daemon)) == 1, what="it is offered")
        mine.report(CALM)
        wait_until(lambda: len(said(daemon)) == 4, what="what is lent is taken back")
        assert said(daemon)[1:] == [
            ("Offer", 10 * MIB),
            ("Reclaim", 14 * MIB),
            ("Offer", 10 * MIB),
        ]
        assert mine.stats()["reclaims"] == 1


def test_a_borrower_that_hangs_does_not_hold_up_a_burst(
    daemon: FakeDaemon, settings: ClientSettings
) -> None:
    """What was asked back before is waited for beside it."""
    daemon.lent_bytes = [40 * MIB, 40 * MIB, 0]
    daemon.reclaims_may_end.clear()
    script = (replace(LEND, nbytes=30 * MIB), replace(RECLAIM, nbytes=30 * MIB))
    with producing(settings, *script) as mine:
        mine.report(CALM)
        wait_until(lambda: len(said(daemon)) == 2, what="what is lent beyond it is asked back")
        mine.report(BURST)
        wait_until(lambda: len(said(daemon)) == 4, what="all of it is")
        assert said(daemon) == [
            ("Offer", 30 * MIB),
            ("Reclaim", 10 * MIB),
            ("Offer", 0),
            ("Reclaim", 40 * MIB),
        ]
        daemon.reclaims_may_end.set()
        wait_until(lambda: mine.stats()["reclaims"] == 2, what="both have ended")


def test_an_engine_and_its_informer(daemon: FakeDaemon, settings: ClientSettings) -> None:
    """Calm it offers what is spare, in a burst it takes back what is lent, with one report."""
    margins = Margins(
        retain_bytes=8 * MIB,
        least_free_bytes=16 * MIB,
        reclaim_spare_bytes=4 * MIB,
        band_bytes=MIB,
        settle_seconds=1e-9,
    )
    informer = LlmInformer(LlmThresholds(margins=margins))
    with producer("SHM-1", informer=informer, settings=settings) as mine:
        wait_until(lambda: mine.report(CALM) == LEND, what="calm for long enough")
        wait_until(lambda: mine.stats()["offered_bytes"] == 40 * MIB, what="it is offered")
        daemon.calls.clear()
        daemon.lent_bytes = [32 * MIB, 0]
        assert mine.report(BURST) == RECLAIM
        wait_until(lambda: len(said(daemon)) == 3, what="it comes back")
        assert said(daemon) == [("Offer", 0), ("Reclaim", 32 * MIB), ("Offer", 0)]


def test_from_the_first_report_on_only_the_informer_lends(
    daemon: FakeDaemon, settings: ClientSettings
) -> None:
    """What the daemon lent by itself before comes back, though the informer decides nothing yet."""
    daemon.lent_bytes = [12 * MIB, 0]
    with producing(settings) as mine:
        assert said(daemon) == []
        mine.report(CALM)
        wait_until(lambda: len(said(daemon)) == 3, what="it comes back")
        assert said(daemon) == [("Offer", 0), ("Reclaim", 12 * MIB), ("Offer", 0)]


def test_a_burst_takes_back_what_a_reclaim_by_hand_has_left(
    daemon: FakeDaemon, settings: ClientSettings
) -> None:
    """The informer knows that so much is still lent, and offers no more of it meanwhile."""
    informer = Scripted(LEND)
    daemon.gpus = [broker_pb2.GpuState(gpu="SHM-1", lent_bytes=24 * MIB)]
    with producer("SHM-1", informer=informer, settings=settings) as mine:
        mine.report(CALM)
        wait_until(lambda: mine.stats()["offered_bytes"] == 40 * MIB, what="it is offered")
        mine.reclaim(8 * MIB)
        daemon.lent_bytes = [24 * MIB, 0]
        informer.script = [replace(RECLAIM, nbytes=24 * MIB)]
        mine.report(BURST)
        assert informer.offered[-1] == 24 * MIB
        wait_until(lambda: len(said(daemon)) >= 4, what="the rest is asked for")
        assert said(daemon)[1:4] == [("Reclaim", 8 * MIB), ("Offer", 0), ("Reclaim", 24 * MIB)]


def test_a_daemon_that_hangs_costs_the_engine_nothing(
    daemon: FakeDaemon, settings: ClientSettings
) -> None:
    """Each report returns at once; the newest decision is what is carried out in the end."""
    quick = replace(settings, call_seconds=0.2, close_seconds=0.2)
    script = [replace(LEND, nbytes=count * MIB) for count in range(1, 101)]
    with producing(quick, *script) as mine:
        daemon.hangs = True
        started_at = time.monotonic()
        for _ in script:
            mine.report(CALM)
        assert time.monotonic() - started_at < 1.0
        wait_until(lambda: mine.stats()["report_failures"], what="it is counted")
        daemon.hangs = False
        wait_until(lambda: mine.stats()["offered_bytes"] == 100 * MIB, what="it is caught up with")


def test_a_daemon_that_comes_later_is_told(
    settings: ClientSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is raised meanwhile, and each kind of failure is logged once."""
    quick = replace(settings, connect_seconds=0.1)
    with pytest.raises(BrokerUnreachable):
        producer("SHM-1", informer=Scripted(), settings=quick)
    informer = Scripted(LEND, replace(LEND, nbytes=48 * MIB))
    with producer("SHM-1", informer=informer, must_attach=False, settings=quick) as mine:
        mine.report(CALM)
        wait_until(lambda: mine.stats()["report_failures"] == {"no_daemon": 1}, what="no daemon")
        mine.report(CALM)
        wait_until(lambda: mine.stats()["report_failures"] != {"no_daemon": 1}, what="tried again")
        with FakeDaemon(settings.socket_path) as daemon:
            wait_until(lambda: said(daemon)[:1] == [("Offer", 48 * MIB)], what="the newest")
            mine.close()
    told = [record for record in caplog.records if "carried out" in record.message]
    failures = mine.stats()["report_failures"]
    assert isinstance(failures, dict)
    assert len(told) == len(failures)


@pytest.mark.usefixtures("daemon")
def test_a_policy_that_fails_does_not_fail_the_engine(settings: ClientSettings) -> None:
    """Its error, and figures of another kind of engine, are counted."""
    with producing(settings, ZeroDivisionError("oops")) as mine:
        assert mine.report(CALM) == Nothing(reason="informer")
        assert mine.stats()["report_failures"] == {"informer": 1}
    with producer("SHM-1", informer=LlmInformer(), settings=settings) as mine:
        figures = BatchFigures(free_bytes=1, batch_size=1, total_bytes=2)
        assert mine.report(figures) == Nothing(reason="informer")


def test_not_being_an_owner_is_counted(daemon: FakeDaemon, settings: ClientSettings) -> None:
    """Nobody raises it in the engine."""
    daemon.refuse["Offer"] = (grpc.StatusCode.PERMISSION_DENIED, "not_permitted")
    with producing(settings, LEND) as mine:
        mine.report(CALM)
        wait_until(lambda: mine.stats()["report_failures"] == {"not_permitted": 1}, what="counted")


@pytest.mark.usefixtures("daemon")
def test_reports_need_an_informer(settings: ClientSettings) -> None:
    """A mistake of the program, told at its first report; without one nothing else changes."""
    with (
        producer("SHM-1", settings=settings) as mine,
        pytest.raises(InvalidRequest, match="informer"),
    ):
        mine.report(CALM)


def test_after_a_reclaim_by_hand_the_informer_rests() -> None:
    """Else it would lend at the next report what was just taken back."""
    clock, carried = FakeClock(), threading.Event()
    informer = Scripted(LEND, LEND, LEND)
    reporter = Reporter(informer, lambda _nbytes: carried.set(), clock=clock)
    reporter.offered_by_hand(8 * MIB)
    reporter.reclaimed_by_hand(4 * MIB, lent_bytes=None)
    clock.advance(REST_SECONDS - 1)
    assert reporter.report(CALM) == Nothing(reason="rests")
    clock.advance(1)
    assert reporter.report(CALM) == LEND
    assert informer.offered == [4 * MIB] * 2
    assert carried.wait(10)
    reporter.close()
    assert reporter.report(CALM) == Nothing(reason="closed")


@pytest.mark.usefixtures("daemon")
def test_a_forked_child_reports_to_nobody(settings: ClientSettings) -> None:
    """Its threads did not come along, and it is not the producer."""
    with producing(settings, LEND) as mine:
        pid = os.fork()
        if pid == 0:
            os._exit(mine.report(CALM) != Nothing(reason="forked"))
        assert os.waitpid(pid, 0)[1] == 0
        assert mine.report(CALM) == LEND
