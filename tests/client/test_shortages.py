"""A process that may open no descriptor, and slabs that are late: host memory, at once, and back.

Covers the client alone, against fakes. What a whole node does then is end to end's.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import grpc
import pytest

from aqua_client.errors import BrokerUnreachable
from aqua_client.records import HostRoom, SafetyClass
from aqua_client.settings import ClientSettings
from tests.client.conftest import Linked
from tests.client.pagers import paging, park, random_bytes, two_gpus
from tests.fakes.broker_books import MIB
from tests.fakes.broker_server import FakeDaemon
from tests.limits import no_more_descriptors
from tests.nodes import environment, wait_until

Link = Callable[..., Linked]
BOTH_WAYS = True
STORE = SafetyClass.STORE
AT_ONCE_SECONDS = 1.0  # ten times what is promised

# The kernel drops descriptors that a process may not have; gRPC aborts a process that may have none.
FIRST_CALL_WITHOUT_DESCRIPTORS = """
import sys
from aqua_client.calls import Calls
from aqua_client.counters import Counters
from aqua_client.errors import BrokerUnreachable
from aqua_client.records import HostRoom
from aqua_client.wire import reserve_host_call
from tests.limits import no_more_descriptors

calls = Calls(sys.argv[1], Counters())
calls.open(bytes(32))
with no_more_descriptors():
    try:
        calls.make(reserve_host_call("0" * 32, HostRoom(revision=1, nbytes=1)), seconds=0.5)
    except BrokerUnreachable as error:
        reason = error.reason
print(reason)
"""


def test_a_first_call_without_descriptors_does_not_end_the_process(
    settings: ClientSettings,
) -> None:
    """A channel of gRPC would abort it, so none is made."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALL_WITHOUT_DESCRIPTORS, settings.socket_path],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "no_descriptors\n"), done.stderr


def test_a_slab_is_not_asked_for_that_could_not_be_taken(daemon: FakeDaemon, link: Link) -> None:
    """The reason says so at once; with descriptors everything goes on, on the same link."""
    session = link()
    session.reserve_host(HostRoom(revision=1, nbytes=MIB))
    before = time.monotonic()
    with no_more_descriptors(), pytest.raises(BrokerUnreachable) as caught:
        session.acquire(4 * MIB, STORE, seconds=5.0)
    assert caught.value.reason == "no_descriptors"
    assert time.monotonic() - before < AT_ONCE_SECONDS
    assert [name for name, _ in daemon.calls] == ["ReserveHost"]
    assert session.attached


def test_a_session_that_begins_without_descriptors_attaches_when_it_may(
    daemon: FakeDaemon, link: Link
) -> None:
    """Starting is no error and no wait; the reason says why there is no lease."""
    with no_more_descriptors():
        before = time.monotonic()
        session = link()
        assert time.monotonic() - before < AT_ONCE_SECONDS
        assert (session.attached, session.reason) == (False, "no_descriptors")
    wait_until(lambda: session.attached, what="attached")
    assert daemon.hellos


def test_a_link_that_ends_under_an_acquire_ends_it(daemon: FakeDaemon, link: Link) -> None:
    """The slab was to come by that link: nobody waits for it until the deadline."""
    daemon.descriptor_comes = "never"
    session = link()
    before = time.monotonic()
    dropping = threading.Timer(0.2, daemon.drop_links)
    dropping.start()
    with pytest.raises(BrokerUnreachable):
        session.acquire(4 * MIB, STORE, seconds=30.0)
    dropping.join()
    assert time.monotonic() - before < 10.0


def test_what_was_not_answered_is_asked_again_and_not_twice(daemon: FakeDaemon, link: Link) -> None:
    """A stuck keeper finds one slab to make, however often it was asked."""
    session = link()
    daemon.refuse["Acquire"] = (grpc.StatusCode.DEADLINE_EXCEEDED, "deadline")
    for _ in range(2):
        with pytest.raises(BrokerUnreachable):
            session.acquire(4 * MIB, STORE, seconds=5.0)
        daemon.drop_links()  # a link made anew has a breaker that is closed
        wait_until(lambda: session.reason == "" and len(daemon.hellos) > 1, what="attached again")
    (first, second) = [str(request) for name, request in daemon.calls if name == "Acquire"]
    assert first == second


def test_a_keeper_that_is_stuck_costs_one_deadline_while_the_daemon_works() -> None:
    """The worker finds out when it goes on; meanwhile no offload waits."""
    node = two_gpus()
    with paging(node) as pager:
        node.answers.clear()
        pager._settings = type(pager._settings)(host_limit_bytes=64 * MIB, acquire_seconds=0.5)
        assert park(pager, random_bytes(1000)).reason == "timeout"
        slowest = 0.0
        asked = len(node.asked)
        while len(node.asked) < asked + 2:  # the worker has tried twice
            started = time.monotonic()
            assert park(pager, random_bytes(1000)).reason == "timeout"
            slowest = max(slowest, time.monotonic() - started)
        assert slowest < 0.4
        node.answers.set()
        wait_until(lambda: park(pager, random_bytes(1000)).tier == "peer", what="peers again")


def test_a_tensor_of_many_slabs_waits_once_for_all_of_them() -> None:
    """Slab after slab comes late, none too late: what is not there in time goes to the host."""
    node = two_gpus(256 * MIB)
    node.late_seconds = 0.3
    tensor = random_bytes(200 * MIB)
    with paging(node) as pager:
        pager._settings = type(pager._settings)(host_limit_bytes=512 * MIB, acquire_seconds=0.7)
        started = time.monotonic()
        handle = park(pager, tensor)
        assert time.monotonic() - started < 7.0
        assert (handle.tier, handle.reason) == ("mixed", "timeout")
