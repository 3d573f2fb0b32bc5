"""What an engine can spare: thresholds, hysteresis, and figures and settings that can't be."""

from __future__ import annotations

import doctest
import math

import pytest

from aqua_client.errors import InvalidRequest, InvalidSetting
from aqua_client.informing import (
    EARLIER,
    GIB,
    BatchFigures,
    BatchInformer,
    Figures,
    Lend,
    LlmInformer,
    LlmThresholds,
    Margins,
    Nothing,
    Reclaim,
)
from aqua_client.informing import batch as batch_module
from aqua_client.informing import llm as llm_module
from tests.client.engines import SETTLE, TOTAL, Engine, batch, llm

# Batches


def test_what_the_largest_batch_leaves_is_offered_less_what_is_retained() -> None:
    """The paper's: free bytes less 5 GiB, where 10 GiB are free."""
    assert Engine(BatchInformer()).settle(batch(50 * GIB)) == Lend(nbytes=45 * GIB, reason="spare")
    assert Engine(BatchInformer()).settle(batch(10 * GIB)) == Lend(nbytes=5 * GIB, reason="spare")
    assert Engine(BatchInformer()).settle(batch(10 * GIB - 1)) == Nothing(reason="no_more")


def test_a_larger_batch_starts_the_wait_anew() -> None:
    """What the smaller one left says nothing of it."""
    engine = Engine(BatchInformer())
    engine.report(batch(50 * GIB, 4))
    assert engine.report(batch(40 * GIB, 8), after=SETTLE) == Nothing(reason="settling")
    assert engine.report(batch(40 * GIB, 8), after=SETTLE) == Lend(nbytes=35 * GIB, reason="spare")


def test_a_smaller_batch_raises_no_offer() -> None:
    """However much it leaves, and however long only such come."""
    engine = Engine(BatchInformer())
    engine.settle(batch(20 * GIB))
    found = engine.report_all([batch(70 * GIB, 1)] * 5, after=SETTLE)
    assert found == [Nothing(reason="smaller_batch")] * 5


def test_nothing_is_offered_before_the_largest_batch_that_is_known_to_come() -> None:
    """The engine may say how large it will be."""
    engine = Engine(BatchInformer(largest_batch=16))
    assert engine.settle(batch(50 * GIB, 8)) == Nothing(reason="smaller_batch")
    assert engine.settle(batch(30 * GIB, 16)) == Lend(nbytes=25 * GIB, reason="spare")


@pytest.mark.parametrize("size", [8, 1])
def test_an_engine_that_grows_gets_back_what_it_is_to_keep(size: int) -> None:
    """As much as makes what is retained whole again, at once, whatever the batch."""
    engine = Engine(BatchInformer())
    engine.settle(batch(50 * GIB))
    assert engine.report(batch(48 * GIB, size)) in (
        Nothing(reason="settling"),
        Nothing(reason="smaller_batch"),
    )
    assert engine.report(batch(47 * GIB, size)) == Reclaim(nbytes=3 * GIB, reason="short")
    assert engine.report(batch(5 * GIB, size)) == Reclaim(nbytes=42 * GIB, reason="short")


def test_after_a_reclaim_it_has_to_settle_anew() -> None:
    """What was free before it says nothing, though the wait for the next offer had almost passed."""
    engine = Engine(BatchInformer())
    engine.settle(batch(20 * GIB))
    engine.report(batch(20 * GIB), after=SETTLE - 1.0)
    assert engine.report(batch(16 * GIB)) == Reclaim(nbytes=4 * GIB, reason="short")
    assert engine.report(batch(50 * GIB), after=1.0) == Nothing(reason="settling")
    assert engine.report(batch(50 * GIB), after=SETTLE) == Lend(nbytes=45 * GIB, reason="spare")


def test_an_engine_that_shrinks_is_followed() -> None:
    """Not once only, as the paper's: when what was free before is that long ago."""
    engine = Engine(BatchInformer())
    engine.settle(batch(20 * GIB))
    assert engine.settle(batch(60 * GIB)) == Nothing(reason="no_more")
    assert engine.report(batch(60 * GIB), after=SETTLE) == Lend(nbytes=55 * GIB, reason="spare")


# Language models


def test_a_calm_engine_offers_its_spare_kv_memory() -> None:
    """At most 2 requests wait, for long enough: the least that was free meanwhile counts."""
    engine = Engine(LlmInformer())
    engine.report(llm(2, 30 * GIB))
    engine.report(llm(0, 25 * GIB))
    assert engine.report(llm(1, 30 * GIB), after=SETTLE) == Lend(nbytes=20 * GIB, reason="spare")


def test_a_burst_takes_all_back_with_its_first_report() -> None:
    """At 10 waiting requests."""
    engine = Engine(LlmInformer(), offered_bytes=20 * GIB)
    assert isinstance(engine.report(llm(9)), Nothing)
    assert engine.report(llm(10)) == Reclaim(nbytes=20 * GIB, reason="pending")
    assert engine.report(llm(100)) == Nothing(reason="pending")


def test_between_the_thresholds_nothing_moves() -> None:
    """Neither back nor out, for however long."""
    for offered in (0, 20 * GIB):
        engine = Engine(LlmInformer(), offered_bytes=offered)
        engine.report_all([llm(3), llm(9)] * 20, after=SETTLE)
        assert engine.moves == []


def test_kv_that_grows_into_what_is_retained_is_made_room_for() -> None:
    """Also while requests wait, but too few for a burst."""
    engine = Engine(LlmInformer(), offered_bytes=20 * GIB)
    assert engine.report(llm(5, 22 * GIB)) == Reclaim(nbytes=3 * GIB, reason="short")


def test_the_earlier_thresholds() -> None:
    """Any of three takes back; calm, and little varied, offers."""
    for busy, reason in (
        (llm(3), "pending"),
        (llm(rate=1.6), "rate"),
        (llm(free_bytes=20 * GIB + 799 * 2**20), "short"),
    ):
        engine = Engine(LlmInformer(EARLIER), offered_bytes=20 * GIB)
        decision = engine.report(busy)
        assert isinstance(decision, Reclaim), busy
        assert decision.reason == reason
    engine = Engine(LlmInformer(EARLIER))
    assert engine.settle(llm(2, 12 * GIB)) == Lend(nbytes=7 * GIB, reason="spare")
    assert Engine(LlmInformer(EARLIER)).settle(llm(rate=1.0)) == Nothing(reason="not_calm")
    engine = Engine(LlmInformer(EARLIER))
    engine.report(llm(free_bytes=20 * GIB + 300 * 10**6))
    assert engine.report(llm(free_bytes=20 * GIB), after=SETTLE) == Nothing(reason="varies")


def test_the_mean_is_of_the_last_seconds() -> None:
    """A burst that is over does not count for ever, and one request too many is no burst."""
    engine = Engine(LlmInformer(EARLIER), offered_bytes=20 * GIB)
    engine.report_all([llm(0)] * 9)
    assert isinstance(engine.report(llm(20)), Nothing)  # 2.0 in the mean of ten
    assert isinstance(engine.report(llm(1)), Reclaim)
    engine.report_all([llm(0)] * 10)
    assert engine.informer.decide(llm(2), offered_bytes=1, now=engine.now) != Nothing(
        reason="pending"
    )


def test_the_examples_of_the_informers_are_true() -> None:
    """As their docstrings show them."""
    for module in (batch_module, llm_module):
        assert doctest.testmod(module) == doctest.TestResults(failed=0, attempted=4)


# What can't be


@pytest.mark.parametrize(
    "figures",
    [
        batch(-1),
        batch(TOTAL + 1),
        batch(0, 0),
        llm(-1),
        llm(free_bytes=TOTAL + 1),
        llm(rate=-0.1),
        llm(rate=math.nan),
    ],
)
def test_figures_that_can_not_be_are_refused(figures: Figures) -> None:
    """The message has them."""
    informer = BatchInformer() if isinstance(figures, BatchFigures) else LlmInformer()
    with pytest.raises(InvalidRequest, match="can't be"):
        informer.decide(figures, offered_bytes=0, now=0.0)


def test_figures_of_another_engine_are_refused() -> None:
    """The message says which are wanted."""
    with pytest.raises(InvalidRequest, match="BatchFigures"):
        BatchInformer().decide(llm(), offered_bytes=0, now=0.0)
    with pytest.raises(InvalidRequest, match="LlmFigures"):
        LlmInformer().decide(batch(0), offered_bytes=0, now=0.0)


def test_settings_that_would_flap_are_refused() -> None:
    """The key and what is allowed."""
    for make, key in (
        (lambda: Margins(retain_bytes=11 * GIB), "retain_bytes"),
        (lambda: Margins(reclaim_spare_bytes=6 * GIB), "reclaim_spare_bytes"),
        (lambda: Margins(band_bytes=-1), "band_bytes"),
        (lambda: Margins(settle_seconds=0.0), "settle_seconds"),
        (lambda: LlmThresholds(offer_pending=10), "offer_pending"),
        (lambda: LlmThresholds(reclaim_rate=1.0, offer_rate=2.0), "offer_rate"),
        (lambda: LlmThresholds(mean_seconds=math.inf), "mean_seconds"),
    ):
        with pytest.raises(InvalidSetting, match=key):
            make()


def test_a_clock_that_goes_back_begins_anew() -> None:
    """Nothing is offered for time that has not passed."""
    informer = LlmInformer()
    informer.decide(llm(), offered_bytes=0, now=100.0)
    assert informer.decide(llm(), offered_bytes=0, now=5.0) == Nothing(reason="settling")
    assert isinstance(informer.decide(llm(), offered_bytes=0, now=5.0 + SETTLE), Lend)
