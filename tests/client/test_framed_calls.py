"""Calls that go by the presence link: as those over gRPC, where the daemon takes them there."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest
from aqua_protos.framing import encode_frame

from aqua_client import link as link_module
from aqua_client.errors import BrokerUnreachable, Refused
from aqua_client.framed_calls import MOST_BYTES, FramedCalls
from aqua_client.link import LinkBroken
from aqua_client.records import CallAnswer, HostRoom, SafetyClass
from aqua_client.settings import ClientSettings
from tests.client.conftest import Linked
from tests.fakes.broker_server import FakeDaemon
from tests.nodes import MIB, wait_until

Link = Callable[..., Linked]
STORE = SafetyClass.STORE
ROOM = HostRoom(revision=1, nbytes=MIB)


def test_what_a_server_calls_goes_by_frame(daemon: FakeDaemon, link: Link) -> None:
    """A slab, its return and host room, and what a lender says: gRPC is not used at all."""
    session = link()
    grant = session.acquire(4 * MIB, STORE, seconds=5.0)
    assert grant.descriptor is not None
    os.close(grant.descriptor)
    assert session.release([grant.lease_id, "0" * 32], ROOM) == {grant.lease_id}
    assert session.acknowledge([grant.lease_id], ROOM) == set()
    assert session.reserve_host(ROOM) == ROOM
    assert session.offer("SHM-1", MIB).offered_bytes == MIB
    assert session.gpu_bytes("SHM-1", seconds=5.0).lent_bytes == 0
    assert session.reclaim("SHM-1", MIB, 5.0).freed_bytes == MIB
    lenders = ["Offer", "GetState", "Reclaim"]
    assert daemon.framed == ["Acquire", "Release", "Acknowledge", "ReserveHost", *lenders]
    assert [name for name, _ in daemon.calls] == daemon.framed
    assert list(daemon.hellos[0].features) == ["calls"]


def test_a_long_call_goes_by_grpc(daemon: FakeDaemon, link: Link) -> None:
    """A keepalive would wait for it in the socket's buffer."""
    daemon.serve_grpc()
    session = link()
    many = [f"{number:032x}" for number in range(MOST_BYTES // 32)]
    assert session.release(many, ROOM) == set()
    assert (daemon.framed, len(daemon.calls)) == ([], 1)


def test_a_call_that_waits_long_holds_up_nothing(daemon: FakeDaemon, link: Link) -> None:
    """While a reclaim is out, and its caller reads the link: keepalives, pushes and other calls."""
    session = link()
    daemon.reclaims_may_end.clear()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(session.reclaim, "SHM-1", MIB, 60.0)
        wait_until(lambda: daemon.framed == ["Reclaim"], what="it is out")
        count = len(daemon.keepalives)
        daemon.session.push_revoke(["0" * 32])
        wait_until(lambda: session.listener.revokes, what="a push is heard")
        wait_until(lambda: len(daemon.keepalives) > count + 1, what="keepalives go on")
        assert session.reserve_host(ROOM) == ROOM
        assert session.reason == ""
        assert not asked.done()
        daemon.reclaims_may_end.set()
        assert asked.result(10.0).freed_bytes == MIB
    assert session.listener.story == ["attached"]


def test_threads_call_side_by_side(daemon: FakeDaemon, link: Link) -> None:
    """Each gets its own answer."""
    session = link()
    with ThreadPoolExecutor(8) as pool:
        grants = list(pool.map(lambda _: session.acquire(4 * MIB, STORE, seconds=5.0), range(24)))
    for grant in grants:
        assert grant.descriptor is not None
        os.close(grant.descriptor)
    assert len({grant.lease_id for grant in grants}) == 24
    assert daemon.framed == ["Acquire"] * 24


def test_nobody_waits_for_the_answer_to_what_is_only_told(
    daemon: FakeDaemon, settings: ClientSettings, link: Link
) -> None:
    """Not of a daemon that hangs, either, and it goes out although others fail; late answers do no harm."""
    session = link(replace(settings, call_seconds=60.0))
    grant = session.acquire(4 * MIB, STORE, seconds=5.0)
    assert grant.descriptor is not None
    os.close(grant.descriptor)
    daemon.hangs = True
    with pytest.raises(BrokerUnreachable):
        session.acquire(4 * MIB, STORE, seconds=0.1)
    before = time.monotonic()
    session.tell_returned(ROOM, acknowledged=[grant.lease_id], released=["0" * 32])
    assert time.monotonic() - before < 30.0
    wait_until(lambda: len(daemon.framed) == 4, what="both are there")
    assert sorted(daemon.framed[2:]) == ["Acknowledge", "Release"]
    daemon.hangs = False
    wait_until(lambda: grant.lease_id not in daemon.session.leases, what="they are answered")
    assert session.acknowledge([grant.lease_id], ROOM) == set()
    assert session.counters.call_failures == {"timeout": 1}


def test_a_no_to_what_is_only_told_is_counted_when_it_comes(daemon: FakeDaemon, link: Link) -> None:
    """There is nobody left to raise it at."""
    session = link()
    daemon.refuse["Acknowledge"] = (grpc.StatusCode.UNAVAILABLE, "restarting")
    session.tell_returned(ROOM, acknowledged=["0" * 32])
    wait_until(lambda: session.counters.call_failures, what="the answer is heard")
    assert session.counters.call_failures == {"restarting": 1}
    assert session.reason == ""


def test_what_is_only_told_goes_out_before_the_goodbye(daemon: FakeDaemon, link: Link) -> None:
    """On the same connection; whoever closes waits for no answer to it."""
    session = link()
    daemon.hangs = True
    session.tell_returned(ROOM, released=["0" * 32])
    session.close(seconds=5.0)
    wait_until(lambda: daemon.goodbyes and daemon.framed, what="both are there")
    with pytest.raises(BrokerUnreachable) as caught:
        session.tell_returned(ROOM, released=["0" * 32])
    assert caught.value.reason == "closed"
    assert session.counters.call_failures == {"closed": 1}


def test_what_is_only_told_waits_for_its_answer_over_grpc(
    settings: ClientSettings, link: Link
) -> None:
    """As every call to a daemon that takes none by frame; so it knows whether it was heard."""
    with FakeDaemon(settings.socket_path, way="grpc") as daemon:
        session = link()
        session.tell_returned(ROOM, acknowledged=["0" * 32], released=["1" * 32])
        assert [name for name, _ in daemon.calls] == ["Acknowledge", "Release"]
        daemon.refuse["Release"] = (grpc.StatusCode.UNAVAILABLE, "restarting")
        with pytest.raises(Refused):
            session.tell_returned(ROOM, released=["1" * 32])
        session.close(seconds=5.0)


def test_a_refusal_has_its_reason_and_opens_no_breaker(daemon: FakeDaemon, link: Link) -> None:
    """As over gRPC; the next call goes out."""
    session = link()
    daemon.refuse["Acquire"] = (grpc.StatusCode.UNAVAILABLE, "restarting")
    with pytest.raises(Refused) as caught:
        session.acquire(4 * MIB, STORE, seconds=5.0)
    assert caught.value.reason == "restarting"
    assert session.reason == ""
    assert session.reserve_host(ROOM) == ROOM


def test_a_daemon_that_hangs_costs_one_deadline(daemon: FakeDaemon, link: Link) -> None:
    """The breaker opens; an answer closes it."""
    session = link()
    daemon.hangs = True
    with pytest.raises(BrokerUnreachable) as caught:
        session.acquire(4 * MIB, STORE, seconds=0.2)
    assert caught.value.reason == "timeout"
    assert session.reason == "breaker"
    with pytest.raises(BrokerUnreachable) as caught:
        session.acquire(4 * MIB, STORE, seconds=5.0)
    assert caught.value.reason == "breaker"


def test_a_link_that_ends_ends_its_calls(daemon: FakeDaemon, link: Link) -> None:
    """They are given up at once, and the next link carries the next ones."""
    session = link()
    daemon.hangs = True
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(session.acquire, 4 * MIB, STORE, seconds=30.0)
        wait_until(lambda: daemon.framed, what="the call is out")
        before = time.monotonic()
        daemon.drop_links()
        error = asked.exception(10.0)
    assert isinstance(error, BrokerUnreachable)
    assert error.reason == "lost"
    assert time.monotonic() - before < 5.0
    daemon.hangs = False
    wait_until(lambda: len(daemon.hellos) == 2 and session.attached, what="attached again")
    assert session.reserve_host(ROOM) == ROOM


def test_an_interrupt_in_the_middle_of_a_frame_ends_the_link(
    daemon: FakeDaemon, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent next would be taken for the rest of it."""
    session = link()

    def half(connection: socket.socket, payload: bytes) -> None:
        connection.sendall(encode_frame(payload)[:-1])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(link_module, "send_frame", half)
        with pytest.raises(KeyboardInterrupt):
            session.reserve_host(ROOM)
    wait_until(lambda: len(daemon.hellos) == 2 and session.attached, what="attached again")
    assert session.reserve_host(ROOM) == ROOM


def test_answers_find_their_callers_whatever_their_order() -> None:
    """One too late for anybody, and one that nobody asked for, do no harm."""
    sent: list[bytes] = []
    calls = FramedCalls(lambda payload, _seconds, _is_over: sent.append(payload))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(calls.ask, "Release", b"1", seconds=30.0)
        wait_until(lambda: len(sent) == 1, what="the first is out")
        second = pool.submit(calls.ask, "Release", b"2", seconds=30.0)
        wait_until(lambda: len(sent) == 2, what="the second is out")
        for number in (2, 2, 7, 1):
            calls.heard(CallAnswer(number=number, payload=bytes([number])))
        assert (first.result(10.0).payload, second.result(10.0).payload) == (b"\1", b"\2")
    with pytest.raises(TimeoutError):
        calls.ask("Release", b"3", seconds=0.01)
    calls.heard(CallAnswer(number=3))
    calls.end()
    with pytest.raises(LinkBroken):
        calls.ask("Release", b"4", seconds=30.0)
    assert len(sent) == 3


def test_what_is_told_and_can_not_be_sent_leaves_nothing_behind() -> None:
    """Its caller knows; nobody hears of it later."""
    heard: list[CallAnswer | None] = []

    def full(_payload: bytes, _seconds: float, _is_over: Callable[[], bool]) -> None:
        raise TimeoutError

    calls = FramedCalls(full)
    with pytest.raises(TimeoutError):
        calls.tell("Release", b"1", heard.append, seconds=0.1)
    calls.heard(CallAnswer(number=1))
    calls = FramedCalls(lambda _payload, _seconds, _is_over: None)
    calls.tell("Release", b"2", heard.append, seconds=0.1)
    calls.end()
    assert heard == [None]
    with pytest.raises(LinkBroken):
        calls.tell("Release", b"3", heard.append, seconds=0.1)


def test_an_end_between_the_asking_and_the_waiting_is_noticed() -> None:
    """Whatever the moment: the caller goes on."""
    calls = FramedCalls(lambda _payload, _seconds, _is_over: calls.end())
    with pytest.raises(LinkBroken):
        calls.ask("Release", b"", seconds=30.0)
