"""How slabs come back: released, acknowledged, closed, freed; and what has no effect."""

from __future__ import annotations

import pytest

from aqua_daemon.core.errors import InvalidRequest, UnknownSession
from aqua_daemon.core.events import (
    LeasesReleased,
    SessionClosed,
    SlabAllocated,
    SlabFreed,
)
from aqua_daemon.core.instructions import AnswerReturned, ForgetSession, FreeSlab
from aqua_daemon.core.model import LeaseId, LeaseState, RequestId, SessionId
from tests.core.bench import BOB, NEAR, SLAB, Bench, room


def test_a_released_slab_is_freed_and_free_only_when_the_driver_has_it() -> None:
    """LEASED, RETURNED, FREEING, gone; the bytes are held until the last step."""
    bench = Bench()
    session = bench.open()
    empty = bench.gpu(NEAR)
    lease_id = bench.grant(session)

    bench.release(session, lease_id)

    assert bench.moves == [
        (LeaseState.LEASED, LeaseState.RETURNED, "released"),
        (LeaseState.RETURNED, LeaseState.FREEING, "free_asked"),
    ]
    assert bench.the(FreeSlab) == [FreeSlab(gpu=NEAR, lease_id=lease_id)]
    assert bench.the(AnswerReturned)[0].returned == (lease_id,)
    assert bench.gpu(NEAR).returning_bytes == SLAB
    assert bench.gpu(NEAR).free_bytes == empty.free_bytes - SLAB

    bench.freed(lease_id)
    assert bench.state(lease_id) is None
    assert bench.gpu(NEAR) == empty


def test_an_answer_of_the_keeper_that_comes_twice_frees_once() -> None:
    """Neither twice, nor before a free was asked for."""
    bench = Bench()
    session = bench.open()
    lease_id, other = bench.grant(session), bench.grant(session)
    assert bench.handle(SlabFreed(lease_id=other)) == ()
    assert bench.state(other) is LeaseState.LEASED
    bench.release(session, lease_id)
    bench.freed(lease_id)
    after = bench.snapshot
    bench.freed(lease_id)
    assert bench.last == ()
    assert bench.snapshot == after


def test_ids_that_are_not_the_callers_leases_have_no_effect() -> None:
    """Another session's, an ended one, one never granted, one still being made: all unknown."""
    bench = Bench()
    mine, theirs = bench.open("s1", pid=1), bench.open("s2", pid=2, tenant=BOB)
    foreign, ended, unmade = bench.grant(theirs), bench.grant(mine), bench.ask(mine)
    bench.release(mine, ended)
    bench.freed(ended)
    never = LeaseId("never")
    before = bench.snapshot
    for answer in (bench.release, bench.acknowledge):
        answer(mine, foreign, ended, never, unmade)
        [returned] = bench.the(AnswerReturned)
        assert returned.returned == ()
        assert returned.unknown == (foreign, ended, never, unmade)
    assert bench.snapshot == before
    assert bench.state(foreign) is LeaseState.LEASED


def test_an_id_named_twice_in_one_call_returns_once() -> None:
    """The sums would be wrong otherwise."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.release(session, lease_id, lease_id)
    assert bench.the(AnswerReturned)[0].returned == (lease_id,)
    assert bench.the(AnswerReturned)[0].unknown == ()


def test_a_repeated_release_gets_the_first_answer_again() -> None:
    """One effect per request id; the reply may have been lost."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    event = LeasesReleased(
        session_id=session, request_id=RequestId("r"), lease_ids=(lease_id,), host_room=None
    )
    bench.handle(event)
    first = bench.the(AnswerReturned)
    bench.handle(event)
    assert bench.last == tuple(first)


def test_a_release_under_the_request_id_of_a_lease_is_invalid() -> None:
    """One id, one call; nothing is returned."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.ask(session, request_id=RequestId("r"))
    bench.handle(SlabAllocated(lease_id=lease_id))
    with pytest.raises(InvalidRequest, match="new id for each call"):
        bench.handle(
            LeasesReleased(
                session_id=session, request_id=RequestId("r"), lease_ids=(lease_id,), host_room=None
            )
        )
    assert bench.state(lease_id) is LeaseState.LEASED


def test_an_acknowledgement_may_bring_another_lease_than_was_asked_for() -> None:
    """The client knows better which of its slabs is the coldest."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.acknowledge(session, lease_id)
    assert bench.state(lease_id) is LeaseState.FREEING


def test_a_session_nobody_knows_returns_nothing() -> None:
    """It has to open a new one."""
    bench = Bench()
    with pytest.raises(UnknownSession):
        bench.release(SessionId("nobody"), LeaseId("x"))


def test_a_goodbye_acknowledges_everything() -> None:
    """Each lease is returned, whatever was asked of it; the session ends with the last slab."""
    bench = Bench()
    session = bench.open()
    leased, revoking, unmade = bench.grant(session), bench.grant(session), bench.ask(session)
    bench.report(NEAR, {11: 1})
    bench.reclaim(session, 1)
    assert {bench.state(leased), bench.state(revoking)} == {
        LeaseState.LEASED,
        LeaseState.LEASED,
    }  # what is not made yet went first
    bench.reclaim(session, 2 * SLAB)
    assert LeaseState.REVOKING in {bench.state(leased), bench.state(revoking)}

    bench.handle(SessionClosed(session_id=session))

    assert bench.state(leased) is bench.state(revoking) is LeaseState.FREEING
    assert bench.state(unmade) is LeaseState.ALLOCATING
    bench.freed(leased, revoking)
    assert bench.session(session) is not None
    bench.handle(SlabAllocated(lease_id=unmade))
    bench.freed(unmade)
    assert bench.the(ForgetSession) == [ForgetSession(session_id=session)]
    assert bench.snapshot.sessions == ()
    assert bench.snapshot.tenants == ()


def test_a_goodbye_of_a_session_without_leases_ends_it_at_once() -> None:
    """And a second one is nothing."""
    bench = Bench()
    session = bench.open()
    bench.handle(SessionClosed(session_id=session))
    assert bench.the(ForgetSession) == [ForgetSession(session_id=session)]
    assert bench.handle(SessionClosed(session_id=session)) == ()


def test_negative_host_room_is_invalid_and_nothing_returns() -> None:
    """Check first, then change."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    with pytest.raises(InvalidRequest, match="below 0"):
        bench.release(session, lease_id, host_room=room(1, -1))
    assert bench.state(lease_id) is LeaseState.LEASED
