"""What time alone does to sessions and leases."""

from __future__ import annotations

import pytest

from aqua_daemon.core.errors import SessionSuspect
from aqua_daemon.core.events import PresenceEnded, Ticked
from aqua_daemon.core.instructions import SendRevoke
from aqua_daemon.core.model import LeaseState, RevokeReason, SessionId, SessionState
from tests.core.bench import SLAB, Bench, use


def state_of(bench: Bench, session: SessionId) -> SessionState:
    found = bench.session(session)
    assert found is not None
    return found.state


def test_a_session_unheard_for_two_thirds_of_a_term_is_suspect() -> None:
    """One keepalive of three may be lost unnoticed; after the second nothing new is granted."""
    bench = Bench()
    session = bench.open()
    bench.tick(6.5)
    assert state_of(bench, session) is SessionState.LIVE
    bench.tick(0.3)
    assert state_of(bench, session) is SessionState.SUSPECT
    with pytest.raises(SessionSuspect, match=r"6\.8 s ago"):
        bench.ask(session)


def test_a_suspect_session_that_is_heard_again_is_live() -> None:
    """A missed keepalive is no crime."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.tick(7.0)
    bench.keepalive(session, use(lease_id))
    assert state_of(bench, session) is SessionState.LIVE
    assert bench.state(bench.grant(session)) is LeaseState.LEASED


def test_keepalives_keep_a_session_and_its_leases_for_ever() -> None:
    """Nothing ever happens to who says every third of a term what it holds."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    for _ in range(12):
        bench.tick(3.3)
        bench.keepalive(session, use(lease_id))
        assert state_of(bench, session) is SessionState.LIVE
    assert bench.state(lease_id) is LeaseState.LEASED


def test_a_term_of_silence_lapses_every_lease() -> None:
    """REVOKING(lapsed) at the term, QUARANTINED two seconds later, healing when it is back."""
    bench = Bench()
    session = bench.open()
    leases = {bench.grant(session), bench.grant(session)}
    bench.handle(PresenceEnded(session_id=session))
    bench.tick(9.9)
    assert {bench.state(lease_id) for lease_id in leases} == {LeaseState.LEASED}
    bench.tick(0.2)
    [order] = bench.the(SendRevoke)
    assert set(order.lease_ids) == leases
    assert order.reason is RevokeReason.LAPSED
    bench.tick(2.1)
    assert {bench.state(lease_id) for lease_id in leases} == {LeaseState.QUARANTINED}

    bench.reattach(session, *(use(lease_id) for lease_id in leases))
    assert state_of(bench, session) is SessionState.LIVE
    assert {bench.state(lease_id) for lease_id in leases} == {LeaseState.QUARANTINED}
    assert set(bench.the(SendRevoke)[0].lease_ids) == leases
    bench.acknowledge(session, *leases)
    assert {bench.state(lease_id) for lease_id in leases} == {LeaseState.FREEING}


def test_a_session_that_lapsed_and_came_back_is_watched_again() -> None:
    """Its term runs anew."""
    bench = Bench()
    session = bench.open()
    bench.tick(10.1)
    bench.reattach(session)
    lease_id = bench.grant(session)
    bench.tick(6.8)
    assert state_of(bench, session) is SessionState.SUSPECT
    bench.tick(3.4)
    lease = bench.lease(lease_id)
    assert lease.state is LeaseState.REVOKING
    assert lease.revocation is not None
    assert lease.revocation.reason is RevokeReason.LAPSED


def test_many_re_attaches_leave_one_timer() -> None:
    """A session that comes back again and again costs no more than another."""
    bench = Bench()
    session = bench.open()
    for _ in range(50):
        bench.handle(PresenceEnded(session_id=session))
        bench.tick(0.5)
        bench.reattach(session)
    bench.tick(6.5)
    assert state_of(bench, session) is SessionState.LIVE
    bench.tick(0.3)
    assert state_of(bench, session) is SessionState.SUSPECT


def test_a_lease_that_is_never_named_is_taken_back() -> None:
    """The grant's reply was lost, and the client never knew: a term, then REVOKING(unclaimed)."""
    bench = Bench()
    session = bench.open()
    known, unknown = bench.grant(session), bench.grant(session)
    for _ in range(3):
        bench.tick(3.0)
        bench.keepalive(session, use(known))
    assert bench.state(unknown) is LeaseState.LEASED
    bench.tick(1.1)
    [order] = bench.the(SendRevoke)
    assert (order.lease_ids, order.reason) == ((unknown,), RevokeReason.UNCLAIMED)
    assert order.nbytes == SLAB
    assert bench.state(known) is LeaseState.LEASED
    bench.acknowledge(session, unknown)
    assert bench.state(unknown) is LeaseState.FREEING


def test_naming_a_lease_again_starts_its_term_anew() -> None:
    """Ten seconds from the last naming, not from the grant."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.tick(6.0)
    bench.keepalive(session, use(lease_id))
    for _ in range(3):
        bench.tick(3.0)
        bench.keepalive(session)
    assert bench.state(lease_id) is LeaseState.LEASED
    bench.tick(1.1)
    assert bench.state(lease_id) is LeaseState.REVOKING


def test_time_that_runs_backwards_does_nothing() -> None:
    """The clock is monotonic; a late timestamp counts as the latest one."""
    bench = Bench()
    session = bench.open()
    bench.tick(5.0)
    bench.now -= 3.0
    bench.keepalive(session)
    found = bench.session(session)
    assert found is not None
    assert found.heard_at == pytest.approx(bench.now + 3.0)


def test_every_revoke_ends_by_its_deadline_and_two_seconds() -> None:
    """Whatever was revoked for whatever reason, with a tick each 100 ms."""
    bench = Bench()
    sessions = [bench.open(f"s{number}", pid=number) for number in range(1, 4)]
    for session in sessions:
        bench.grant(session)
    for _ in range(200):
        bench.now += 0.1
        bench.handle(Ticked())
        for lease in bench.snapshot.leases:
            if lease.state is LeaseState.REVOKING:
                assert lease.revocation is not None
                assert bench.now < lease.revocation.deadline + 0.11
    states = {lease.state for lease in bench.snapshot.leases}
    assert states == {LeaseState.QUARANTINED}


def test_a_settled_node_has_a_next_deadline_that_is_never_in_the_past_after_a_tick() -> None:
    """The service may sleep until then."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    for _ in range(40):
        deadline = bench.broker.next_deadline()
        assert deadline is not None
        bench.now = max(bench.now, deadline)
        bench.handle(Ticked())
        later = bench.broker.next_deadline()
        assert later is None or later > bench.now
        if bench.state(lease_id) is LeaseState.QUARANTINED:
            return
    pytest.fail("the lease never ended in quarantine")
