"""The single writer: order, answers, joins, ticks, and what a fault in the broker does."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from aqua_daemon.core import events, instructions
from aqua_daemon.core.errors import (
    BrokerBug,
    BrokerError,
    InsufficientMemory,
    InvalidRequest,
    InvalidTransition,
    QuotaExceeded,
    UnknownSession,
)
from aqua_daemon.core.model import LeaseState, RequestId, RevokeReason, SessionId
from aqua_daemon.service import BrokerService
from tests.daemon.samples import DENIED, GPU, LEASE_ID, MIB, REQUESTED, SESSION_ID, TAG, move
from tests.daemon.scripted import GRANTED, KEEPALIVE, KEPT, Bench, ScriptedBroker, until
from tests.fakes.clock import FakeClock
from tests.fakes.journal import FakeJournal
from tests.fakes.sessions import FakeSessions


def test_orders_go_to_keepers_and_sessions() -> None:
    """Each instruction reaches the port that carries it out, in order, at the clock's time."""
    bench = Bench()
    bench.keepers.is_stuck = True
    revoke = instructions.SendRevoke(
        session_id=SESSION_ID,
        gpu=GPU,
        nbytes=4 * MIB,
        reason=RevokeReason.RECLAIM,
        deadline=bench.clock() + 2.0,
        lease_ids=(LEASE_ID,),
    )
    overdue = replace(revoke, deadline=bench.clock() - 1.0)
    allocate = instructions.AllocateSlab(tag=TAG)
    free = instructions.FreeSlab(gpu=GPU, lease_id=LEASE_ID)
    forget = instructions.ForgetSession(session_id=SESSION_ID)
    bench.broker.script[events.Ticked] = (allocate, revoke, overdue, free, forget)
    bench.service.submit(events.Ticked())
    assert bench.keepers.orders == [allocate, free]
    assert bench.sessions.revokes == [(revoke, 2.0), (overdue, 0.0)]
    assert bench.sessions.forgotten == [SESSION_ID]
    assert bench.journal.instructions == [allocate, revoke, overdue, free, forget]
    assert bench.broker.handled == [(events.Ticked(), bench.clock())]


def test_an_event_from_within_an_adapter_waits_for_its_turn() -> None:
    """The second instruction is carried out before what the first one brought is handled."""
    bench = Bench()
    told = instructions.TellLost(session_id=SESSION_ID, lease_ids=(LEASE_ID,), reason="ended")
    forget = instructions.ForgetSession(session_id=SESSION_ID)
    bench.broker.script[events.KeeperEnded] = (told, forget)
    bench.service.submit(events.KeeperEnded(gpus=(GPU,)))
    assert bench.journal.story == [
        "KeeperEnded",
        "TellLost",
        "ForgetSession",
        "LossTold",
    ]


def test_the_handle_of_a_lease_that_is_over_is_dropped() -> None:
    """A slab that was given back, lost or freed has no handle to keep; one being granted has."""
    bench = Bench()
    for after in (LeaseState.RETURNED, LeaseState.LOST, None):
        bench.broker.script[events.Ticked] = (move(LeaseState.LEASED, after),)
        bench.service.submit(events.Ticked())
    assert bench.keepers.dropped == [LEASE_ID] * 3
    bench.broker.script[events.Ticked] = (move(LeaseState.ALLOCATING, LeaseState.LEASED),)
    bench.service.submit(events.Ticked())
    assert bench.keepers.dropped == [LEASE_ID] * 3


def test_a_request_waits_for_the_answer_to_its_id() -> None:
    """The caller gets the answer that came with a later event, and nobody else's."""

    async def story() -> None:
        bench = Bench()
        request = asyncio.create_task(bench.service.request(REQUESTED, timeout_seconds=5.0))
        await until(lambda: bench.broker.handled)
        stranger = replace(GRANTED, request_id=RequestId("00" * 16))
        bench.broker.script[events.SlabAllocated] = (stranger, GRANTED)
        assert not request.done()
        bench.service.submit(events.SlabAllocated(lease_id=LEASE_ID))
        assert await request == GRANTED

    asyncio.run(story())


def test_a_request_that_is_pending_is_joined_by_its_repeat() -> None:
    """One id, one effect: the broker sees it once, both callers get the answer."""

    async def story() -> None:
        bench = Bench()
        first = asyncio.create_task(bench.service.request(REQUESTED, timeout_seconds=5.0))
        second = asyncio.create_task(bench.service.request(REQUESTED, timeout_seconds=5.0))
        await until(lambda: bench.broker.handled)
        await asyncio.sleep(0)
        assert bench.handled == ["LeaseRequested"]
        bench.broker.script[events.Ticked] = (GRANTED,)
        bench.service.submit(events.Ticked())
        assert (await first, await second) == (GRANTED, GRANTED)

    asyncio.run(story())


def test_an_id_that_is_pending_for_another_call_is_refused() -> None:
    """A keepalive can't join a request for a lease."""

    async def story() -> None:
        bench = Bench()
        request = asyncio.create_task(bench.service.request(REQUESTED, timeout_seconds=5.0))
        await until(lambda: bench.broker.handled)
        with pytest.raises(InvalidRequest, match="use a new id"):
            await bench.service.request(KEEPALIVE, timeout_seconds=5.0)
        assert bench.handled == ["LeaseRequested"]
        request.cancel()

    asyncio.run(story())


def test_a_caller_that_gives_up_leaves_the_request_going() -> None:
    """After its deadline a repeat still joins the first request, and gets its answer."""

    async def story() -> None:
        bench = Bench()
        with pytest.raises(TimeoutError):
            await bench.service.request(REQUESTED, timeout_seconds=0.0)
        again = asyncio.create_task(bench.service.request(REQUESTED, timeout_seconds=5.0))
        await asyncio.sleep(0)
        assert bench.handled == ["LeaseRequested"]
        bench.broker.script[events.Ticked] = (GRANTED,)
        bench.service.submit(events.Ticked())
        assert await again == GRANTED

    asyncio.run(story())


@pytest.mark.parametrize("error", [QuotaExceeded("full"), InvalidTransition("a bug")])
def test_what_the_broker_refuses_at_once_the_caller_gets(error: BrokerError) -> None:
    """The error comes back to the caller and goes to the journal; the next request starts anew."""

    async def story() -> None:
        bench = Bench()
        bench.broker.script[events.LeaseRequested] = error
        for _ in range(2):
            with pytest.raises(type(error)):
                await bench.service.request(REQUESTED, timeout_seconds=5.0)
        assert bench.journal.refusals == [(REQUESTED, error)] * 2
        assert bench.handled == ["LeaseRequested"] * 2
        assert bench.service.faults == (2 if isinstance(error, BrokerBug) else 0)

    asyncio.run(story())


def test_what_is_denied_later_the_caller_gets() -> None:
    """AnswerDenied raises its error in whoever waits, and in nobody when nobody does."""

    async def story() -> None:
        bench = Bench()
        bench.broker.script[events.SlabAllocationFailed] = (DENIED,)
        failed = events.SlabAllocationFailed(lease_id=LEASE_ID, message="full")
        bench.service.submit(failed)
        request = asyncio.create_task(bench.service.request(REQUESTED, timeout_seconds=5.0))
        await until(lambda: "LeaseRequested" in bench.handled)
        bench.service.submit(failed)
        with pytest.raises(InsufficientMemory):
            await request

    asyncio.run(story())


def test_the_end_of_a_session_ends_its_requests() -> None:
    """Nobody waits for the answer to a session that is no more."""

    async def story() -> None:
        bench = Bench()
        request = asyncio.create_task(bench.service.request(REQUESTED, timeout_seconds=5.0))
        await until(lambda: bench.broker.handled)
        bench.broker.script[events.ProcessEnded] = (
            instructions.ForgetSession(session_id=SESSION_ID),
        )
        bench.service.submit(events.ProcessEnded(session_id=SESSION_ID))
        with pytest.raises(UnknownSession, match="connect anew"):
            await request

    asyncio.run(story())


def test_a_fault_inside_the_broker_is_counted_and_the_loop_goes_on() -> None:
    """An unexpected exception reaches its caller as a BrokerBug; the next event is handled."""

    async def story() -> None:
        bench = Bench()
        bench.broker.script[events.LeaseRequested] = KeyError("oops")
        bench.broker.script[events.KeepaliveReceived] = (KEPT,)
        with pytest.raises(BrokerBug, match="oops"):
            await bench.service.request(REQUESTED, timeout_seconds=5.0)
        assert bench.service.faults == 1
        assert bench.service.answer_now(KEEPALIVE) == KEPT
        assert len(bench.journal.refusals) == 1

    asyncio.run(story())


def test_a_port_that_breaks_its_promise_stops_nothing() -> None:
    """What an adapter raises is counted; the instructions after it are carried out."""
    bench = Bench()
    bench.keepers.close()

    class Broken(FakeSessions):
        def forget(self, session_id: SessionId) -> None:
            raise OSError(session_id)

    bench.service.connect(keepers=bench.keepers, sessions=Broken(bench.service.submit))
    bench.keepers.is_stuck = True
    forget = instructions.ForgetSession(session_id=SESSION_ID)
    allocate = instructions.AllocateSlab(tag=TAG)
    bench.broker.script[events.Ticked] = (forget, allocate)
    bench.service.submit(events.Ticked())
    assert bench.service.faults == 1
    assert bench.keepers.orders == [allocate]


def test_an_answer_that_must_come_at_once_is_a_bug_when_it_does_not() -> None:
    """`answer_now` never waits: an answer left for later raises."""

    async def story() -> None:
        bench = Bench()
        with pytest.raises(BrokerBug, match="KeepaliveReceived was not answered"):
            bench.service.answer_now(KEEPALIVE)

    asyncio.run(story())


def test_ticks_come_by_themselves() -> None:
    """While the service runs the broker hears of time without anybody submitting anything."""

    async def story() -> None:
        bench = Bench()
        run = asyncio.create_task(bench.service.run())
        await until(lambda: len(bench.broker.handled) >= 2)
        assert set(bench.handled) == {"Ticked"}
        run.cancel()

    asyncio.run(story())


def test_the_next_tick_comes_with_the_next_deadline() -> None:
    """A deadline that is near shortens the pause; one that is overdue never makes it spin."""
    bench = Bench()
    pauses = []
    for deadline in (None, 60.0, 0.05, -5.0):
        bench.broker.deadline = None if deadline is None else bench.clock() + deadline
        pauses.append(bench.service._seconds_to_next_tick())
    assert pauses == [0.1, 0.1, pytest.approx(0.05), 0.01]


def test_a_snapshot_is_of_now() -> None:
    """The books are read at the clock's time."""
    bench = Bench()
    bench.clock.advance(5.0)
    assert bench.service.snapshot().now == bench.clock()


def test_events_before_connect_are_a_fault_that_says_so() -> None:
    """A service that nobody connected carries nothing out, and counts it."""
    broker = ScriptedBroker()
    journal = FakeJournal()
    service = BrokerService(broker, clock=FakeClock(), journal=journal)
    broker.script[events.Ticked] = (instructions.FreeSlab(gpu=GPU, lease_id=LEASE_ID),)
    service.submit(events.Ticked())
    assert service.faults == 1
    assert "connect()" in str(journal.refusals[0][1])
