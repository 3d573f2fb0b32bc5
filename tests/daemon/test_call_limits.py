"""Limits of calls: a flood of one process or one user meets them, and nobody else."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack

import grpc
import pytest
from aqua_protos import broker_pb2
from grpc import aio

from aqua_daemon.adapters.call_limits import CallGate, CallLimits
from aqua_daemon.adapters.statuses import TooMany
from tests.daemon.in_process import MIB, Client, greeted, new_id, running
from tests.fakes.clock import FakeClock

FEW = CallLimits(
    under_way_per_process=3,
    under_way_per_uid=5,
    per_second_per_process=10,
    per_second_per_uid=25,
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def gate(clock: FakeClock) -> CallGate:
    return CallGate(FEW, clock=clock)


def flood(gate: CallGate, *, pid: int, uid: int) -> int:
    """How many calls one after the other get through at this moment."""
    for number in range(1000):
        try:
            with gate.entered(pid=pid, uid=uid):
                pass
        except TooMany:
            return number
    raise AssertionError("no limit")


def test_a_process_has_so_many_calls_under_way(gate: CallGate) -> None:
    """One that ends makes room; the message names the process and the figure."""
    with ExitStack() as calls:
        for _ in range(2):
            calls.enter_context(gate.entered(pid=1, uid=7))
        with gate.entered(pid=1, uid=7):
            with pytest.raises(TooMany, match="process 1 has 3 calls under way"):
                calls.enter_context(gate.entered(pid=1, uid=7))
            calls.enter_context(gate.entered(pid=2, uid=7))
        calls.enter_context(gate.entered(pid=1, uid=7))


def test_a_user_gains_nothing_by_more_processes(gate: CallGate) -> None:
    """The sixth call of one uid is refused, whoever makes it; another uid's is not."""
    with ExitStack() as calls:
        for pid in range(5):
            calls.enter_context(gate.entered(pid=pid, uid=7))
        with pytest.raises(TooMany, match="uid 7 has 5 calls under way"):
            calls.enter_context(gate.entered(pid=99, uid=7))
        calls.enter_context(gate.entered(pid=100, uid=8))


def test_a_process_makes_so_many_calls_in_a_second(gate: CallGate, clock: FakeClock) -> None:
    """A second's worth at once, then at its pace; another process of the user goes on."""
    assert flood(gate, pid=1, uid=7) == 10
    assert flood(gate, pid=2, uid=7) == 10
    clock.advance(0.5)
    assert flood(gate, pid=1, uid=7) == 5
    clock.advance(100.0)
    assert flood(gate, pid=1, uid=7) == 10


def test_a_user_makes_so_many_calls_in_a_second(gate: CallGate) -> None:
    """Ten processes of one uid get what one uid gets, and the next uid all that is its own."""
    assert sum(flood(gate, pid=pid, uid=7) for pid in range(10)) == 25
    assert flood(gate, pid=11, uid=8) == 10


def test_a_call_that_is_refused_costs_its_user_nothing(gate: CallGate) -> None:
    """A process over its own limit does not use up its neighbours'."""
    for _ in range(5):
        flood(gate, pid=1, uid=7)
    assert flood(gate, pid=2, uid=7) == 10


def test_a_call_that_fails_gives_its_place_back(gate: CallGate) -> None:
    """Whatever it ended with."""
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), gate.entered(pid=1, uid=7):
            raise ZeroDivisionError
    with gate.entered(pid=1, uid=7):
        pass


def test_callers_that_are_gone_are_forgotten(clock: FakeClock) -> None:
    """However many processes come and go, what is remembered stays small."""
    gate = CallGate(CallLimits(), clock=clock)
    with gate.entered(pid=0, uid=0):
        for pid in range(1, 10_000):
            clock.advance(0.01)
            flood_once = gate.entered(pid=pid, uid=1)
            with flood_once:
                pass
        assert len(gate) < 1100
        clock.advance(10.0)
        gate.forget_idle()
        assert len(gate) == 2  # of the call that is under way


async def acquired(client: Client) -> broker_pb2.AcquireReply:
    request = broker_pb2.AcquireRequest(
        request_id=new_id(), nbytes=4 * MIB, safety_class=broker_pb2.SAFETY_CLASS_CACHE
    )
    return broker_pb2.AcquireReply.FromString(await client.call("Acquire", request))


def test_a_flood_of_calls_is_refused_with_what_to_do_and_then_served_again() -> None:
    """With a stuck keeper calls pile up to the limit; over it they are refused without waiting."""

    async def story() -> None:
        async with running(call_limits=FEW) as node, greeted(node) as client:
            node.keepers.is_stuck = True
            waiting = [asyncio.create_task(acquired(client)) for _ in range(3)]
            await node.wait_for(lambda: len(node.keepers.orders) == 3, "three are under way")
            with pytest.raises(aio.AioRpcError) as refused:
                await acquired(client)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert f"process {os.getpid()} has 3 calls" in (refused.value.details() or "")
            assert len(node.keepers.orders) == 3
            node.keepers.is_stuck = False
            node.keepers.answer()
            assert len({reply.lease.lease_id for reply in await asyncio.gather(*waiting)}) == 3
            await acquired(client)

    asyncio.run(story())


def test_sessions_of_one_process_share_its_limit() -> None:
    """A second session is no second purse."""

    async def story() -> None:
        limits = CallLimits(per_second_per_process=5)
        state = broker_pb2.GetStateRequest()
        async with (
            running(call_limits=limits) as node,
            greeted(node) as one,
            greeted(node) as two,
        ):
            for client in (one, two, one, two, one):
                await client.call("GetState", state)
            for client in (one, two):
                with pytest.raises(aio.AioRpcError, match="too fast"):
                    await client.call("GetState", state)
            node.clock.advance(1.0)
            await two.call("GetState", state)

    asyncio.run(story())
