"""A running broker looks through its books a little after each event, and finds whatever breaks."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from aqua_daemon.core.auditing import Audit
from aqua_daemon.core.books import Books
from aqua_daemon.core.events import Event, LossTold, Ticked
from aqua_daemon.core.model import LeaseId
from aqua_daemon.core.sizes import LOOKS_PER_EVENT, LOOKS_PER_TICK, MIB
from tests.core.bench import ALICE, BOB, NEAR, Bench
from tests.core.measure_handle import Workload
from tests.core.test_integrity import SPOILT, books_of, spoil_holder

_LEASES = 40
_EVENTS_BETWEEN_TICKS = 9
_NOTHING = LossTold(lease_ids=())


def bench_with_leases() -> Bench:
    """A running broker: two tenants, a few sessions, and more leases than one event looks at."""
    bench = Bench(strict=False)
    sessions = [bench.open(f"s{n}", tenant=(ALICE, BOB)[n % 2], pid=n + 11) for n in range(4)]
    for number in range(_LEASES):
        bench.grant(sessions[number % 4], nbytes=4 * MIB)
    return bench


def looks_in_a_round(books: Books) -> int:
    """The most that the head comment of `auditing` allows."""
    ledger = books.ledger
    twice = len(ledger.leases) + len(ledger.sessions) + len(ledger.gpus)
    return 2 * twice + 3 * len(ledger.tenants) + 1


def events_until_found(bench: Bench, events: Callable[[int], Event], most: int) -> int:
    """How many of *events* it takes to find a violation, *most* + 1 if more than that."""
    for number in range(1, most + 1):
        bench.handle(events(number))
        if bench.snapshot.invariant_violations:
            return number
    return most + 1


@pytest.mark.parametrize(("spoil", "names"), SPOILT)
def test_a_busy_broker_finds_each_spoilt_figure_within_two_rounds(
    spoil: Callable[[Books], None], names: str
) -> None:
    """Whatever breaks anywhere in the middle of a round, however few ticks there are."""
    del names
    bench = bench_with_leases()
    for _ in range(7):
        bench.handle(Ticked())
        bench.handle(_NOTHING)
    spoil(books_of(bench))
    events_in_a_round = math.ceil(looks_in_a_round(books_of(bench)) / LOOKS_PER_EVENT)
    most = 2 * (events_in_a_round + 1 + _EVENTS_BETWEEN_TICKS)

    def busy(number: int) -> Event:
        return _NOTHING if number % (_EVENTS_BETWEEN_TICKS + 1) else Ticked()

    assert events_until_found(bench, busy, most) <= most


@pytest.mark.parametrize(("spoil", "names"), SPOILT)
def test_an_idle_broker_finds_each_spoilt_figure_within_a_few_ticks(
    spoil: Callable[[Books], None], names: str
) -> None:
    """Nobody waits for a tick, so it looks at more."""
    del names
    bench = bench_with_leases()
    spoil(books_of(bench))
    most = 2 * (math.ceil(looks_in_a_round(books_of(bench)) / LOOKS_PER_TICK) + 1)
    assert events_until_found(bench, lambda _: Ticked(), most) <= most


def test_what_follows_from_a_violation_never_costs_the_event_its_instructions() -> None:
    """A lease of nobody is counted and left alone: there is no account to move it in."""
    bench = bench_with_leases()
    spoil_holder(books_of(bench))
    bench.tick(1.0)
    assert bench.snapshot.invariant_violations
    assert "nobody" in bench.gpu(NEAR).trouble


def test_an_event_pays_for_its_own_looks_only() -> None:
    """With every lease spoilt, each look finds something: no event finds more than it has looks."""
    bench = bench_with_leases()
    books = books_of(bench)
    books.ledger.gpus[NEAR].keeper_slabs.clear()
    audit = Audit(books)
    assert audit.go_on(is_tick=False) == []  # a round begins at a tick
    audit.go_on(is_tick=True)
    found: list[LeaseId | None] = []
    while len(found) < _LEASES:
        violations = audit.go_on(is_tick=False)
        assert len(violations) == LOOKS_PER_EVENT
        found += [violation.lease_id for violation in violations]
    assert sorted(map(str, found)) == sorted(books.ledger.leases)


def test_books_that_change_during_a_round_are_no_violation() -> None:
    """Records and sums of one moment are compared, whatever became of them since."""
    workload = Workload(leases=60)
    workload.run(4000)
    assert workload.most_leases >= 60
    assert workload.broker.snapshot(workload.now).invariant_violations == 0
