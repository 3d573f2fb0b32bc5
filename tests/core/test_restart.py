"""A new daemon: its books are what the keepers hold, and it lends nothing until it knows enough."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aqua_daemon.core.errors import NotPermitted, Restarting, UnknownSession
from aqua_daemon.core.events import ProcessEnded, SentinelEnded, SessionClosed, SlabAllocated
from aqua_daemon.core.instructions import (
    AnswerGranted,
    AnswerKeepalive,
    AnswerReturned,
    ForgetSession,
    FreeSlab,
    SendRevoke,
)
from aqua_daemon.core.model import (
    LeaseId,
    LeaseState,
    RequestId,
    RevokeReason,
    SessionId,
    SessionState,
)
from tests.core.bench import ALICE, BOB, HOME, NEAR, SLAB, Bench, process, use


def restarted(slabs: int = 1) -> tuple[Bench, SessionId, list[LeaseId]]:
    """A session held slabs; the daemon was replaced; nobody has been heard yet."""
    bench = Bench()
    session = bench.open()
    leases = [bench.grant(session) for _ in range(slabs)]
    bench.now += 5.0
    bench.restart()
    return bench, session, leases


def adopt(bench: Bench) -> None:
    bench.attach(HOME, NEAR, slabs=tuple(bench.tags.values()))


def test_nothing_is_lent_before_every_keeper_was_heard() -> None:
    """One of two is not enough; a session that opened meanwhile has to wait."""
    bench = Bench(attach=False)
    session = bench.open(home=None)
    assert bench.is_restarting()
    for gpu in (HOME, NEAR):
        with pytest.raises(Restarting, match="use host memory"):
            bench.ask(session)
        bench.attach(gpu)
    assert not bench.is_restarting()
    assert bench.state(bench.grant(session)) is LeaseState.LEASED


def test_slabs_are_adopted_with_a_full_new_term_and_their_holder_is_suspect() -> None:
    """Everything that the tag says is in the books again."""
    bench, session, [lease_id] = restarted()
    adopt(bench)
    lease = bench.lease(lease_id)
    assert bench.moves == [(None, LeaseState.LEASED, "adopted")]
    assert (lease.session_id, lease.tenant, lease.lender) == (session, ALICE, NEAR)
    assert (lease.nbytes, bench.snapshot.named_at[lease_id]) == (SLAB, bench.now)
    found = bench.session(session)
    assert found is not None
    assert (found.state, found.process, found.tenant) == (
        SessionState.SUSPECT,
        process(11),
        ALICE,
    )
    assert bench.gpu(NEAR).lent_bytes == SLAB
    assert bench.snapshot.host_reserved_bytes == SLAB
    assert bench.is_restarting()


def test_lending_begins_when_each_holder_is_back() -> None:
    """The re-attach ends the wait, and keeps the slab."""
    bench, session, [lease_id] = restarted()
    adopt(bench)
    other = bench.open("s2", pid=12, tenant=BOB)
    with pytest.raises(Restarting, match="waits for 1 holders"):
        bench.ask(other)
    bench.reattach(session, use(lease_id))
    assert not bench.is_restarting()
    assert bench.state(lease_id) is LeaseState.LEASED
    bench.grant(other)
    bench.grant(session)


def test_lending_begins_when_a_holder_is_dead() -> None:
    """Its slab goes back on the proof, as always."""
    bench, session, [lease_id] = restarted()
    adopt(bench)
    bench.handle(ProcessEnded(session_id=session))
    assert not bench.is_restarting()
    assert bench.state(lease_id) is LeaseState.REVOKING
    bench.handle(SentinelEnded(session_id=session))
    bench.freed(lease_id)
    assert bench.snapshot.sessions == ()


def test_lending_begins_after_the_grace_whatever_happens() -> None:
    """A holder that never comes back stops nobody else; its lease lapsed before."""
    bench, _, [lease_id] = restarted()
    adopt(bench)
    other = bench.open("s2", pid=12, tenant=BOB)
    for _ in range(5):
        bench.tick(2.9)
        bench.keepalive(other)
    assert bench.is_restarting()
    assert bench.state(lease_id) is LeaseState.QUARANTINED
    bench.tick(0.6)
    assert not bench.is_restarting()
    bench.grant(other)


def test_a_holder_that_is_late_after_the_grace_still_heals() -> None:
    """Lapsed, quarantined, and still its own to evacuate and acknowledge."""
    bench, session, [lease_id] = restarted()
    adopt(bench)
    bench.tick(9.9)
    assert bench.state(lease_id) is LeaseState.LEASED
    bench.tick(20.0)
    assert bench.state(lease_id) is LeaseState.QUARANTINED
    bench.reattach(session, use(lease_id))
    [order] = bench.the(SendRevoke)
    assert order.reason is RevokeReason.LAPSED
    bench.acknowledge(session, lease_id)
    assert bench.state(lease_id) is LeaseState.FREEING


def test_another_process_can_not_re_attach_to_an_adopted_session() -> None:
    """The tag says whose it is."""
    bench, session, _ = restarted()
    adopt(bench)
    before = bench.snapshot
    with pytest.raises(NotPermitted):
        bench.reattach(session, pid=99)
    assert bench.snapshot == before


def test_a_session_without_slabs_comes_back_under_its_id_during_the_grace() -> None:
    """It may hold host bytes only."""
    bench, _, _ = restarted()
    adopt(bench)
    session = SessionId("host-only")
    bench.reattach(session, pid=12)
    found = bench.session(session)
    assert found is not None
    assert found.state is SessionState.LIVE
    bench.tick(15.0)
    with pytest.raises(UnknownSession):
        bench.reattach(SessionId("late"), pid=13)


def test_a_session_that_ended_does_not_come_back() -> None:
    """Its process is dead; whoever says that id is somebody else."""
    bench, session, _ = restarted()
    bench.attach(HOME, NEAR)
    bench.reattach(session)
    bench.handle(ProcessEnded(session_id=session))
    with pytest.raises(UnknownSession):
        bench.reattach(session)


def test_leases_of_a_keeper_that_was_not_heard_are_not_yet_known() -> None:
    """The client must not close them; once the keeper is heard they are its own, or ended."""
    bench, session, [lease_id] = restarted()
    bench.attach(HOME)
    bench.reattach(session, use(lease_id), use(LeaseId("gone")))
    [answer] = bench.the(AnswerKeepalive)
    assert (answer.ended, answer.unheard) == ((), (lease_id, "gone"))
    bench.attach(NEAR, slabs=tuple(bench.tags.values()))
    assert bench.state(lease_id) is LeaseState.LEASED
    assert not bench.is_restarting()  # its holder is there already
    bench.keepalive(session, use(lease_id), use(LeaseId("gone")))
    [answer] = bench.the(AnswerKeepalive)
    assert (answer.ended, answer.unheard) == (("gone",), ())


def test_a_process_that_took_an_unheard_sessions_id_loses_it_when_the_tag_is_heard() -> None:
    """It never reaches the slab of the true holder."""
    bench, session, [lease_id] = restarted()
    bench.attach(HOME)
    bench.reattach(session, use(lease_id), pid=99, tenant=BOB)
    bench.attach(NEAR, slabs=tuple(bench.tags.values()))
    assert bench.the(ForgetSession) == [ForgetSession(session_id=session)]
    found = bench.session(session)
    assert found is not None
    assert (found.process, found.tenant, found.state) == (
        process(11),
        ALICE,
        SessionState.SUSPECT,
    )
    with pytest.raises(NotPermitted):
        bench.reattach(session, pid=99)
    bench.reattach(session, use(lease_id))
    assert bench.state(lease_id) is LeaseState.LEASED


def test_a_request_repeated_after_a_restart_gets_the_slab_it_had_got() -> None:
    """The tag carries the request id: the reply was lost with the old daemon."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.ask(session, request_id=RequestId("r"))
    bench.handle(SlabAllocated(lease_id=lease_id))
    bench.restart()
    adopt(bench)
    bench.reattach(session, use(lease_id))
    bench.ask(session, request_id=RequestId("r"))
    assert bench.the(AnswerGranted)[0].lease.lease_id == lease_id
    assert len(bench.snapshot.leases) == 1


def test_what_a_client_returned_before_the_restart_is_asked_back_from_it() -> None:
    """The free was lost with the daemon; the client does not name the slab, and says so."""
    bench, session, [kept, returned] = restarted(2)
    adopt(bench)
    bench.reattach(session, use(kept))
    for _ in range(3):
        bench.tick(3.3)
        bench.keepalive(session, use(kept))
    bench.tick(0.2)
    [order] = bench.the(SendRevoke)
    assert (order.lease_ids, order.reason) == ((returned,), RevokeReason.UNCLAIMED)
    bench.acknowledge(session, returned)
    assert bench.state(returned) is LeaseState.FREEING


def test_a_tenant_keeps_what_it_held_when_its_quota_was_lowered() -> None:
    """Adoption takes nothing away, and grants nothing more."""
    bench, session, leases = restarted(3)
    bench.settings = replace(bench.settings, tenant_quota_bytes=SLAB)
    bench.restart()
    adopt(bench)
    bench.reattach(session, *(use(lease_id) for lease_id in leases))
    assert bench.tenant(ALICE).leased_bytes == 3 * SLAB
    bench.tick(1.0)
    assert {bench.state(lease_id) for lease_id in leases} == {LeaseState.LEASED}


def test_lending_once_begun_does_not_stop_for_a_keeper_that_comes_late() -> None:
    """The wait is for the start alone."""
    bench, _, _ = restarted()
    bench.attach(HOME)
    bench.tick(15.1)
    assert not bench.is_restarting()
    bench.attach(NEAR, slabs=tuple(bench.tags.values()))
    assert not bench.is_restarting()


def test_a_slab_of_another_process_under_a_known_id_is_held_for_nobody() -> None:
    """Two keepers disagree about whose a session is: who is here must not reach the other's slab."""
    bench, session, leases = restarted(2)
    mine, other = (bench.tags[lease_id] for lease_id in leases)
    theirs = replace(other, holder=process(99), lender=HOME)
    bench.strict = False
    bench.restart()
    bench.attach(NEAR, slabs=(mine,))
    bench.reattach(session, use(mine.lease_id))
    bench.attach(HOME, slabs=(theirs,))
    assert bench.state(theirs.lease_id) is None
    assert bench.gpu(HOME).quarantined_bytes == SLAB
    assert bench.gpu(HOME).trouble != ""
    bench.acknowledge(session, theirs.lease_id)
    assert bench.the(AnswerReturned)[0].unknown == (theirs.lease_id,)
    assert bench.snapshot.invariant_violations == 1


def test_a_goodbye_under_a_taken_id_frees_nothing_of_the_true_holder() -> None:
    """Who left is the process that said so, whatever id it had come under."""
    bench, session, [lease_id] = restarted()
    bench.attach(HOME)
    bench.reattach(session, pid=99, tenant=BOB)
    bench.handle(SessionClosed(session_id=session))
    bench.attach(NEAR, slabs=tuple(bench.tags.values()))
    assert bench.the(FreeSlab) == []
    assert bench.state(lease_id) is LeaseState.LEASED
    bench.reattach(session, use(lease_id))
    assert bench.state(lease_id) is LeaseState.LEASED
