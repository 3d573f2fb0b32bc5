"""Looking through all of the books: at once, or a little after each event.

A look is at one record or one sum, and costs the same whatever else is in the books. `Audit` takes
`LOOKS_PER_EVENT` after each event and more at a tick, which nobody waits for. So no event costs
more with more leases, but that the tick which begins a round copies references to all records. A
round has at most two looks for each lease, session and GPU, three for each tenant and one for each
lease that a reclaim waits for, and begins at
the first tick after the last one's end. Whatever breaks is found by the end of the round after the
one that it broke in.

Strict brokers (tests, simulated nodes) look through everything at once, every
`EVENTS_BETWEEN_FULL_CHECKS` events. What an event has touched is looked at after it in any case:
that is `faults`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice

from aqua_daemon.core.books import Books
from aqua_daemon.core.integrity import (
    Violation,
    overdue,
    violations_of_gpu,
    violations_of_lease,
    violations_of_owed,
    violations_of_slab,
    violations_of_tenant,
)
from aqua_daemon.core.model import REVOKING
from aqua_daemon.core.recount import Recount
from aqua_daemon.core.sizes import LOOKS_PER_EVENT, LOOKS_PER_TICK


def all_violations(books: Books) -> Iterator[Violation]:
    """Everything that is wrong, with each sum counted again from the records."""
    return chain.from_iterable(looks(books))


def looks(books: Books) -> Iterator[Sequence[Violation]]:
    """A round: what each look finds. Sums are compared as they are when this is called."""
    return _looks(books, Recount(books.ledger))


class Audit:
    """The rounds of a running broker."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._looks: Iterator[Sequence[Violation]] = iter(())

    def go_on(self, *, is_tick: bool) -> list[Violation]:
        """Take the next looks; what they find."""
        most = LOOKS_PER_TICK if is_tick else LOOKS_PER_EVENT
        found: list[Violation] = []
        taken = 0
        for violations in islice(self._looks, most):
            taken += 1
            if violations:
                found += violations
        if is_tick and taken < most:
            self._looks = looks(self._books)
        return found


def _looks(books: Books, recount: Recount) -> Iterator[Sequence[Violation]]:
    ledger = books.ledger
    for counted in recount.leases:
        recount.count_lease(counted)
        lease = ledger.leases.get(counted.lease_id)
        if lease is None:
            yield ()
        elif lease.state is REVOKING:
            yield violations_of_lease(books, lease) + overdue(books, lease)
        else:
            yield violations_of_lease(books, lease)
    for reclaim in tuple(books.reclaims):
        for lease_id in reclaim.outstanding:
            yield violations_of_owed(books, lease_id)
    for session in recount.sessions:
        recount.count_session(session)
        yield ()
    for account in tuple(ledger.gpus.values()):
        yield violations_of_gpu(account)
        for lease_id in tuple(account.keeper_slabs):
            yield violations_of_slab(ledger, account, lease_id)
    for tenant in tuple(ledger.tenants):
        yield violations_of_tenant(books, tenant)
    for difference in recount.differences():
        yield () if difference is None else (difference,)
