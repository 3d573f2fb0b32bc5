"""Who is there: opening, re-attaching, keepalives, death with and without heirs."""

from __future__ import annotations

import pytest

from aqua_daemon.core.errors import InvalidRequest, NotPermitted, UnknownSession
from aqua_daemon.core.events import PresenceEnded, ProcessEnded, SentinelEnded
from aqua_daemon.core.instructions import (
    AnswerKeepalive,
    ForgetSession,
    FreeSlab,
    Instruction,
    SendRevoke,
)
from aqua_daemon.core.model import LeaseId, LeaseState, RevokeReason, SessionId, SessionState
from tests.core.bench import BOB, NEAR, SLAB, Bench, room, use


def test_a_session_id_never_comes_back() -> None:
    """Neither while it is there nor after it has ended."""
    bench = Bench()
    session = bench.open("s")
    with pytest.raises(InvalidRequest, match="used before"):
        bench.open("s")
    bench.handle(ProcessEnded(session_id=session))
    with pytest.raises(InvalidRequest, match="used before"):
        bench.open("s")


def test_signals_about_sessions_nobody_knows_have_no_effect() -> None:
    """The kernel's word may come late."""
    bench = Bench()
    nobody = SessionId("nobody")
    before = bench.snapshot
    for event in (
        ProcessEnded(session_id=nobody),
        SentinelEnded(session_id=nobody),
        PresenceEnded(session_id=nobody),
    ):
        assert bench.handle(event) == ()
    assert bench.snapshot == before
    with pytest.raises(UnknownSession):
        bench.keepalive(nobody)


# Death


def test_a_death_revokes_everything_at_once_and_the_proof_returns_it() -> None:
    """LEASED to REVOKING(dead) in the same event; nothing is free before process and sentinel."""
    bench = Bench()
    session = bench.open()
    empty = bench.gpu(NEAR)
    leases = [bench.grant(session), bench.grant(session)]

    bench.handle(ProcessEnded(session_id=session))

    for lease_id in leases:
        lease = bench.lease(lease_id)
        assert lease.state is LeaseState.REVOKING
        assert lease.revocation is not None
        assert lease.revocation.reason is RevokeReason.DEAD
    assert bench.the(SendRevoke) == []  # there is nobody to tell
    assert bench.the(FreeSlab) == []

    bench.now += 0.003
    bench.handle(SentinelEnded(session_id=session))
    assert {order.lease_id for order in bench.the(FreeSlab)} == set(leases)
    assert bench.gpu(NEAR).returning_bytes == 2 * SLAB
    bench.freed(*leases)
    assert bench.the(ForgetSession) == [ForgetSession(session_id=session)]
    assert bench.gpu(NEAR) == empty


def test_a_sentinel_that_ended_first_proves_the_death_when_it_comes() -> None:
    """The two signals race."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.handle(SentinelEnded(session_id=session))
    assert bench.state(lease_id) is LeaseState.LEASED
    bench.handle(ProcessEnded(session_id=session))
    assert bench.state(lease_id) is LeaseState.FREEING
    assert bench.moves[:2] == [
        (LeaseState.LEASED, LeaseState.REVOKING, "revoked"),
        (LeaseState.REVOKING, LeaseState.RETURNED, "proved_gone"),
    ]


def test_what_an_heir_maps_is_quarantined_within_a_second_and_heals_with_it() -> None:
    """A surviving child keeps the sentinel alive, and its mappings."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.handle(ProcessEnded(session_id=session))
    bench.tick(1.0)
    assert (LeaseState.REVOKING, LeaseState.QUARANTINED, "inherited") in bench.moves
    assert bench.gpu(NEAR).quarantined_bytes == SLAB
    bench.tick(60.0)
    assert bench.state(lease_id) is LeaseState.QUARANTINED
    bench.handle(SentinelEnded(session_id=session))
    assert bench.state(lease_id) is LeaseState.FREEING


def test_a_death_during_a_revoke_never_buys_time() -> None:
    """The nearer deadline counts, and the reason is the death."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.report(NEAR, {11: 0})
    bench.reclaim(session, 1)
    bench.now += 1.8
    bench.handle(ProcessEnded(session_id=session))
    revocation = bench.lease(lease_id).revocation
    assert revocation is not None
    assert revocation.reason is RevokeReason.DEAD
    assert revocation.deadline == pytest.approx(bench.now + 0.2)
    assert revocation.started_at == pytest.approx(bench.now - 1.8)


def test_a_quarantined_lease_of_a_dead_process_waits_for_the_proof() -> None:
    """It was late before; now nobody can acknowledge it any more."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.report(NEAR, {11: 0})
    bench.reclaim(session, 1)
    bench.tick(2.1)
    bench.handle(ProcessEnded(session_id=session))
    assert bench.state(lease_id) is LeaseState.QUARANTINED
    with pytest.raises(UnknownSession):
        bench.acknowledge(session, lease_id)
    bench.handle(SentinelEnded(session_id=session))
    assert bench.state(lease_id) is LeaseState.FREEING


def test_a_death_ends_a_session_that_holds_nothing() -> None:
    """No slab waits for its sentinel."""
    bench = Bench()
    session = bench.open()
    bench.handle(ProcessEnded(session_id=session))
    assert bench.the(ForgetSession) == [ForgetSession(session_id=session)]
    assert bench.session(session) is None
    assert bench.handle(ProcessEnded(session_id=session)) == ()


def test_a_death_touches_no_other_session() -> None:
    """A bad client changes only its own."""
    bench = Bench()
    dying, living = bench.open("s1", pid=1), bench.open("s2", pid=2, tenant=BOB)
    bench.grant(dying)
    lease_id = bench.grant(living)
    before = bench.lease(lease_id)
    bench.handle(ProcessEnded(session_id=dying))
    assert bench.lease(lease_id) == before
    assert bench.session(living) is not None


# Signs of life


def test_the_end_of_presence_makes_a_session_suspect_and_takes_nothing() -> None:
    """The process may be back."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    assert bench.handle(PresenceEnded(session_id=session)) == ()
    found = bench.session(session)
    assert found is not None
    assert found.state is SessionState.SUSPECT
    assert bench.state(lease_id) is LeaseState.LEASED


def test_the_same_process_re_attaches_and_is_told_what_it_does_not_hold() -> None:
    """Known leases are named, unknown ones ended."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.handle(PresenceEnded(session_id=session))
    bench.now += 5.0
    bench.reattach(session, use(lease_id, used_bytes=77), use(LeaseId("never")))
    [answer] = bench.the(AnswerKeepalive)
    assert (answer.ended, answer.unheard) == (("never",), ())
    found = bench.session(session)
    assert found is not None
    assert (found.state, found.heard_at) == (SessionState.LIVE, bench.now)
    assert bench.snapshot.named_at[lease_id] == bench.now
    assert bench.snapshot.uses[lease_id].used_bytes == 77


def test_another_process_can_not_take_a_session_over() -> None:
    """Pid, start time and uid must be the same."""
    bench = Bench()
    session = bench.open(pid=11)
    lease_id = bench.grant(session)
    before = bench.snapshot
    with pytest.raises(NotPermitted, match="belongs to process 11"):
        bench.reattach(session, use(lease_id), pid=12)
    assert bench.snapshot == before


def test_a_dead_session_can_not_be_re_attached_to() -> None:
    """Not even by a process with the same figures."""
    bench = Bench()
    session = bench.open()
    bench.grant(session)
    bench.handle(ProcessEnded(session_id=session))
    with pytest.raises(UnknownSession):
        bench.reattach(session)


def test_a_keepalive_says_which_leases_are_not_the_sessions_own() -> None:
    """Foreign, ended, never granted: nothing is counted, nothing changes hands."""
    bench = Bench()
    mine, theirs = bench.open("s1", pid=1), bench.open("s2", pid=2, tenant=BOB)
    foreign, ended, held = bench.grant(theirs), bench.grant(mine), bench.grant(mine)
    bench.release(mine, ended)
    before = (bench.lease(foreign), bench.snapshot.named_at[foreign])
    bench.now += 1.0
    bench.keepalive(mine, use(foreign), use(ended), use(LeaseId("never")), use(held))
    [answer] = bench.the(AnswerKeepalive)
    assert answer.ended == (foreign, ended, "never")
    assert (bench.lease(foreign), bench.snapshot.named_at[foreign]) == before
    assert foreign not in bench.snapshot.uses
    assert bench.snapshot.named_at[held] == bench.now
    bench.freed(ended)
    bench.keepalive(mine, use(ended), use(held))
    assert bench.the(AnswerKeepalive)[0].ended == (ended,)


def test_a_keepalive_with_impossible_host_room_changes_nothing() -> None:
    """Check first, then change."""
    bench = Bench()
    session = bench.open()
    before = bench.snapshot
    bench.now += 1.0
    with pytest.raises(InvalidRequest):
        bench.keepalive(session, host_room=room(-1, 0))
    assert bench.snapshot.sessions == before.sessions


def test_a_refused_event_leaves_no_trace_in_what_follows() -> None:
    """The same event gives the same instructions, whatever was refused before it."""

    def story(*, refused: bool) -> tuple[Instruction, ...]:
        bench = Bench()
        session = bench.open()
        if refused:
            with pytest.raises(InvalidRequest):
                bench.ask(session, nbytes=1, lease_id=LeaseId("bad"))
            with pytest.raises(UnknownSession):
                bench.release(SessionId("nobody"), LeaseId("x"))
        bench.count = 100
        bench.grant(session)
        return bench.last

    assert story(refused=True) == story(refused=False)
