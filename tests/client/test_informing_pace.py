"""What an engine can spare is told at a pace that never flaps, whatever its load."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aqua_client.informing import (
    EARLIER,
    GIB,
    BatchInformer,
    Decision,
    Figures,
    Lend,
    LlmInformer,
    LlmThresholds,
    Margins,
    Nothing,
)
from tests.client.engines import SETTLE, TOTAL, Engine, batch, llm

# For both: whatever the load is


def engines() -> list[Callable[[], tuple[Engine, Callable[[int], Figures]]]]:
    return [
        lambda: (Engine(BatchInformer()), batch),
        lambda: (Engine(LlmInformer()), lambda free_bytes: llm(0, free_bytes)),
    ]


@pytest.mark.parametrize("make", engines())
@given(
    middle=st.integers(8 * GIB, 70 * GIB),
    swings=st.lists(st.integers(0, GIB - 1), min_size=2, max_size=40),
    after=st.floats(0.1, 2 * SETTLE),
)
@settings(deadline=None)  # other work shares the machine
def test_free_memory_that_swings_within_the_band_moves_nothing(
    make: Callable[[], tuple[Engine, Callable[[int], Figures]]],
    middle: int,
    swings: list[int],
    after: float,
) -> None:
    """At most the one first offer, at any pace, also round the least that is offered."""
    engine, figures = make()
    engine.report_all((figures(middle + swing) for swing in swings), after=after)
    assert [type(move) for _, move in engine.moves] in ([], [Lend])


@given(
    pending=st.lists(st.integers(3, 9), min_size=1, max_size=40),
    offered=st.sampled_from([0, 20 * GIB]),
    after=st.floats(0.01, 3 * SETTLE),
)
@settings(deadline=None)  # other work shares the machine
def test_requests_that_swing_between_the_thresholds_move_nothing(
    pending: list[int], offered: int, after: float
) -> None:
    """Whatever was offered before."""
    engine = Engine(LlmInformer(), offered_bytes=offered)
    engine.report_all(map(llm, pending), after=after)
    assert engine.moves == []


@given(
    threshold=st.sampled_from([2, 10]),
    above=st.lists(st.booleans(), min_size=1, max_size=60),
    after=st.floats(0.01, SETTLE / 2),
)
@settings(deadline=None)  # other work shares the machine
def test_requests_that_swing_round_one_threshold_decide_once(
    threshold: int, above: list[bool], after: float
) -> None:
    """A reclaim at the upper one, and no offer after it: the lower one is far."""
    engine = Engine(LlmInformer(), offered_bytes=20 * GIB)
    engine.report_all((llm(threshold - (not high)) for high in above), after=after)
    assert len(engine.moves) <= 1


LOADS = st.lists(
    st.tuples(st.integers(0, 15), st.integers(0, TOTAL), st.floats(0.001, SETTLE)), max_size=80
)


@pytest.mark.parametrize("thresholds", [LlmThresholds(), EARLIER])
@given(loads=LOADS)
@settings(deadline=None)  # other work shares the machine
def test_any_load_of_a_language_model(
    thresholds: LlmThresholds, loads: list[tuple[int, int, float]]
) -> None:
    """Never more than is free less what is retained; an offer never soon after anything else."""
    engine = Engine(LlmInformer(thresholds))
    for pending, free_bytes, after in loads:
        decision = engine.report(llm(pending, free_bytes, rate=pending / 8), after=after)
        check(engine, decision, free_bytes)
        if thresholds is not EARLIER and pending >= 10:
            assert engine.offered_bytes == 0


@given(loads=LOADS)
@settings(deadline=None)  # other work shares the machine
def test_any_load_of_a_batch_engine(loads: list[tuple[int, int, float]]) -> None:
    """The same, with batches of every size."""
    engine = Engine(BatchInformer())
    for batch_size, free_bytes, after in loads:
        check(engine, engine.report(batch(free_bytes, batch_size + 1), after=after), free_bytes)


def check(engine: Engine, decision: Decision, free_bytes: int) -> None:
    if not isinstance(decision, Nothing):
        assert engine.offered_bytes <= max(0, free_bytes - Margins().retain_bytes)
    if isinstance(decision, Lend) and len(engine.moves) > 1:
        (before, _), (now, _) = engine.moves[-2:]
        assert now - before >= SETTLE * (1 - 1e-9)
