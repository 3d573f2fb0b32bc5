"""Daemons and keepers that hang: each costs one deadline, and nothing waits for it."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import grpc
import pytest

from aqua_client.errors import BrokerUnreachable
from aqua_client.records import HostRoom
from aqua_client.settings import ClientSettings
from tests.client.conftest import Linked
from tests.client.test_session import STORE, borrow
from tests.fakes.broker_books import MIB
from tests.fakes.broker_server import FakeDaemon
from tests.nodes import stop_process, wait_until

Link = Callable[..., Linked]
BOTH_WAYS = True


def test_a_stuck_daemon_costs_one_deadline(daemon: FakeDaemon, link: Link) -> None:
    """Then calls fail at once, until a probe is answered."""
    daemon.term_seconds = 60.0  # so that only the breaker is at work
    session = link()
    daemon.hangs = True
    before = time.monotonic()
    with pytest.raises(BrokerUnreachable) as caught:
        session.acquire(4 * MIB, STORE, seconds=0.3)
    assert caught.value.reason == "timeout"
    assert session.reason == "breaker"
    assert session.attached
    for _ in range(100):
        with pytest.raises(BrokerUnreachable) as caught:
            session.acquire(4 * MIB, STORE, seconds=0.3)
        assert caught.value.reason == "breaker"
    assert time.monotonic() - before < 1.0
    assert session.counters.breaker_openings == 1
    daemon.hangs = False
    wait_until(lambda: can_borrow(session), what="a probe goes through")
    assert session.reason == ""


def test_a_stuck_keeper_costs_one_deadline_too(daemon: FakeDaemon, link: Link) -> None:
    """The daemon itself says that there was no answer in time: that counts like its silence."""
    daemon.refuse["Acquire"] = (grpc.StatusCode.DEADLINE_EXCEEDED, "deadline")
    session = link()
    for reason in ("timeout", "breaker"):
        with pytest.raises(BrokerUnreachable) as caught:
            session.acquire(4 * MIB, STORE, seconds=5.0)
        assert caught.value.reason == reason


def test_a_return_is_not_held_back_by_what_acquires_wait_for(
    daemon: FakeDaemon, link: Link
) -> None:
    """A stuck keeper is no reason to let a revoke run into its deadline."""
    session = link()
    first, second = borrow(session), borrow(session)
    daemon.refuse["Acquire"] = (grpc.StatusCode.DEADLINE_EXCEEDED, "deadline")
    with pytest.raises(BrokerUnreachable):
        session.acquire(4 * MIB, STORE, seconds=5.0)
    assert session.reason == "breaker"
    room = HostRoom(revision=1, nbytes=0)
    assert session.acknowledge([first], room) == {first}
    assert session.release([second], room) == {second}
    assert session.reason == "breaker"  # they say nothing of the keeper


def can_borrow(session: Linked) -> bool:
    try:
        borrow(session)
    except BrokerUnreachable:
        return False
    return True


def test_a_reattach_closes_the_breaker(daemon: FakeDaemon, link: Link) -> None:
    """A daemon that welcomes works: no pause is waited for."""
    session = link()
    daemon.hangs = True
    with pytest.raises(BrokerUnreachable):
        session.acquire(4 * MIB, STORE, seconds=0.1)
    daemon.hangs = False
    daemon.drop_links()
    wait_until(lambda: session.counters.session_reattaches, what="attached again")
    borrow(session)


def test_no_time_left_is_no_call(daemon: FakeDaemon, link: Link) -> None:
    """A deadline that has passed already says nothing of the daemon."""
    session = link()
    with pytest.raises(BrokerUnreachable):
        session.acquire(4 * MIB, STORE, seconds=0.0)
    assert daemon.calls == []
    assert session.reason == ""


def test_a_stopped_daemon_process_costs_one_deadline(
    process: subprocess.Popen[str], link: Link
) -> None:
    """SIGSTOP: one call waits, the others fail at once; SIGCONT: leases are to be had again."""
    session = link()
    borrow(session)
    stop_process(process.pid)
    seconds: list[float] = []
    for _ in range(20):
        before = time.monotonic()
        with pytest.raises(BrokerUnreachable):
            session.acquire(4 * MIB, STORE, seconds=0.4)
        seconds.append(time.monotonic() - before)
    assert max(seconds) < 4.0
    assert sum(1 for one in seconds if one > 0.2) <= 3, "a deadline, and now and then a probe"
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: can_borrow(session), what="the daemon answers again")


def test_a_daemon_process_killed_while_a_call_is_out(
    process: subprocess.Popen[str], link: Link
) -> None:
    """The call ends long before its deadline."""
    session = link()
    borrow(session)
    stop_process(process.pid)
    killer = threading.Timer(0.2, process.kill)
    killer.start()
    before = time.monotonic()
    with pytest.raises(BrokerUnreachable):
        session.acquire(4 * MIB, STORE, seconds=50.0)
    assert time.monotonic() - before < 10.0
    killer.join()
    wait_until(lambda: session.reason == "no_daemon", what="nobody is there")


def test_a_stopped_daemon_does_not_hold_up_a_start(
    process: subprocess.Popen[str], link: Link, settings: ClientSettings
) -> None:
    """A new process waits for connect_seconds, and goes on without."""
    stop_process(process.pid)
    before = time.monotonic()
    session = link(replace(settings, connect_seconds=0.2))
    assert time.monotonic() - before < 2.0
    assert not session.attached
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: session.attached, what="attached once it goes on")
