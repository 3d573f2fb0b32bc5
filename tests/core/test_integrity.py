"""Broken invariants are found, named with figures, counted once, and their harm is limited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from aqua_daemon.core.books import Books
from aqua_daemon.core.errors import InsufficientMemory, IntegrityViolation
from aqua_daemon.core.events import GpuReported, KeeperEnded, Ticked
from aqua_daemon.core.instructions import NoteBrokenInvariant, SendRevoke
from aqua_daemon.core.model import LeaseId, LeaseState, RevokeReason, SessionState
from tests.core.bench import ALICE, GPU_BYTES, HOME, NEAR, SLAB, Bench, report

FIRST = LeaseId("lease-1")


def books_of(bench: Bench) -> Books:
    return bench.broker._books


def spoil_gpu_sum(books: Books) -> None:
    books.ledger.gpus[NEAR].held_bytes -= 1


def spoil_gpu_state(books: Books) -> None:
    books.ledger.gpus[NEAR].bytes_in[LeaseState.LEASED] -= 1
    books.ledger.gpus[NEAR].bytes_in[LeaseState.REVOKING] += 1


def spoil_coming(books: Books) -> None:
    books.ledger.gpus[NEAR].coming_bytes += 1


def spoil_tenant(books: Books) -> None:
    books.ledger.tenants[ALICE].held_bytes += 1


def spoil_quota(books: Books) -> None:
    books.default_limits = replace(books.default_limits, nbytes=1)


def spoil_lease_quota(books: Books) -> None:
    books.default_limits = replace(books.default_limits, leases=0)


def spoil_session_quota(books: Books) -> None:
    books.default_limits = replace(books.default_limits, sessions=0)


def spoil_lease_count(books: Books) -> None:
    books.ledger.tenants[ALICE].leases += 1


def spoil_owners_sessions(books: Books) -> None:
    books.ledger.owners[ALICE].sessions += 1


def spoil_host(books: Books) -> None:
    books.ledger.host_bytes += 1


def spoil_session(books: Books) -> None:
    next(iter(books.ledger.session_accounts.values())).backed_bytes += 1


def spoil_returnable(books: Books) -> None:
    next(iter(books.ledger.session_accounts.values())).returnable.clear()


def spoil_returnable_extra(books: Books) -> None:
    account = next(iter(books.ledger.session_accounts.values()))
    account.returnable[LeaseId("extra")] = None


def spoil_named(books: Books) -> None:
    books.ledger.named_at[LeaseId("struck")] = 1.0


def spoil_index(books: Books) -> None:
    del books.ledger.gpus[NEAR].leases[FIRST]


def spoil_holder(books: Books) -> None:
    books.ledger.leases[FIRST] = replace(books.ledger.leases[FIRST], session_id="nobody")  # type: ignore[arg-type]  # a str will do


def spoil_dead(books: Books) -> None:
    session = next(iter(books.ledger.sessions.values()))
    dead = replace(session, state=SessionState.DEAD)
    books.ledger.sessions[session.session_id] = dead


def spoil_keeper(books: Books) -> None:
    books.ledger.gpus[NEAR].keeper_slabs[FIRST] = SLAB // 2


def spoil_keeper_extra(books: Books) -> None:
    books.ledger.gpus[HOME].keeper_slabs[LeaseId("extra")] = 7


def spoil_revocation(books: Books) -> None:
    lease = books.ledger.leases[FIRST]
    books.ledger.replace(replace(lease, state=LeaseState.REVOKING))


SPOILT = [
    (spoil_gpu_sum, "sums"),
    (spoil_gpu_state, "recount"),
    (spoil_coming, "recount"),
    (spoil_tenant, "alice"),
    (spoil_quota, "of 1 bytes"),
    (spoil_lease_quota, "1 of 0 leases"),
    (spoil_session_quota, "1 of 0 sessions"),
    (spoil_lease_count, "alice's records"),
    (spoil_owners_sessions, "alice and its sub-tenants"),
    (spoil_host, "host room"),
    (spoil_session, "session s1"),
    (spoil_returnable, "list of what it has"),
    (spoil_returnable_extra, "session s1"),
    (spoil_named, "named"),
    (spoil_index, "recount"),
    (spoil_holder, "nobody is not in the books"),
    (spoil_dead, "a process that has ended"),
    (spoil_keeper, f"its keeper {SLAB // 2}"),
    (spoil_keeper_extra, "extra"),
    (spoil_revocation, "without a deadline"),
]


@pytest.mark.parametrize(("spoil", "names"), SPOILT)
def test_every_spoilt_figure_is_found_and_named(spoil: Callable[[Books], None], names: str) -> None:
    """The check is worth what it finds: one wrong number each."""
    bench = Bench()
    bench.grant(bench.open())
    bench.broker.check_integrity()
    spoil(books_of(bench))
    with pytest.raises(IntegrityViolation, match=names):
        bench.broker.check_integrity()


def test_a_revoke_past_its_deadline_at_a_tick_is_a_violation() -> None:
    """Between ticks nobody looked; at a tick it had to end."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.report(NEAR, {11: 0})
    bench.reclaim(session, 1)
    revocation = bench.lease(lease_id).revocation
    assert revocation is not None
    books_of(bench).ticked_at = revocation.deadline + 1
    with pytest.raises(IntegrityViolation, match="past its deadline"):
        bench.broker.check_integrity()


def test_a_strict_broker_raises_what_it_finds() -> None:
    """Tests fail where the books broke, not later."""
    bench = Bench()
    bench.grant(bench.open())
    with pytest.raises(IntegrityViolation, match=FIRST):
        bench.broker.handle(GpuReported(report=report(NEAR)), now=bench.now)


# A running broker


def test_a_slab_missing_from_a_report_is_set_apart_and_asked_back() -> None:
    """QUARANTINED, its holder told, its bytes held, nothing more granted there; counted once."""
    bench = Bench(strict=False)
    session = bench.open()
    lease_id = bench.grant(session)
    free_before = bench.gpu(NEAR).free_bytes

    bench.handle(GpuReported(report=report(NEAR)))

    assert bench.state(lease_id) is LeaseState.QUARANTINED
    [order] = bench.the(SendRevoke)
    assert (order.lease_ids, order.reason) == ((lease_id,), RevokeReason.FAULT)
    gpu = bench.gpu(NEAR)
    assert (gpu.free_bytes, gpu.quarantined_bytes) == (free_before, SLAB)
    assert lease_id in gpu.trouble
    [note] = bench.the(NoteBrokenInvariant)
    assert (note.gpu, note.lease_id) == (NEAR, lease_id)
    assert note.message in gpu.trouble
    with pytest.raises(InsufficientMemory, match="in doubt"):
        bench.ask(session)
    assert bench.snapshot.invariant_violations == 1
    bench.handle(GpuReported(report=report(NEAR)))
    for _ in range(60):
        bench.handle(Ticked())
    assert bench.snapshot.invariant_violations == 1


def test_a_slab_that_nobody_knows_is_held_and_stops_grants() -> None:
    """Whose it is cannot be told, so it is never free."""
    bench = Bench(strict=False)
    session = bench.open()
    bench.handle(GpuReported(report=report(NEAR, {LeaseId("strange"): SLAB})))
    gpu = bench.gpu(NEAR)
    assert gpu.free_bytes == GPU_BYTES - SLAB
    assert gpu.quarantined_bytes == SLAB
    assert "strange" in gpu.trouble
    assert bench.snapshot.invariant_violations == 1
    with pytest.raises(InsufficientMemory):
        bench.ask(session)
    assert bench.gpu(HOME).trouble == ""


def test_doubt_ends_with_the_keeper_it_was_about() -> None:
    """A new keeper starts with a clean sheet; the count stays."""
    bench = Bench(strict=False)
    bench.handle(GpuReported(report=report(NEAR, {LeaseId("strange"): SLAB})))
    bench.handle(KeeperEnded(gpus=(NEAR,)))
    bench.attach(NEAR)
    assert bench.gpu(NEAR).trouble == ""
    assert bench.gpu(NEAR).free_bytes == GPU_BYTES
    assert bench.snapshot.invariant_violations == 1
    bench.broker.check_integrity()


def test_everything_is_checked_every_fiftieth_event() -> None:
    """A wrong sum that no event touches is found all the same."""
    bench = Bench(strict=False)
    bench.grant(bench.open())
    spoil_tenant(books_of(bench))
    for _ in range(50):
        bench.handle(Ticked())
    assert bench.snapshot.invariant_violations == 1


def test_a_lease_that_comes_back_from_the_dead_is_not_adopted() -> None:
    """It was granted and ended; a keeper that shows it again holds it for nobody."""
    bench = Bench(strict=False)
    session = bench.open()
    lease_id = bench.grant(session)
    bench.release(session, lease_id)
    bench.freed(lease_id)
    bench.attach(HOME, NEAR, slabs=(bench.tags[lease_id],))
    assert bench.state(lease_id) is None
    assert bench.gpu(NEAR).quarantined_bytes == SLAB
    assert bench.snapshot.invariant_violations == 1
