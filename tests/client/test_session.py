"""A session: attach, borrow, give back, and hear what the daemon pushes."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from aqua_client.errors import BrokerUnreachable, NotAnOwner, Refused
from aqua_client.records import HostRoom, LeaseUse, SafetyClass
from aqua_client.settings import ClientSettings
from tests.client.conftest import Linked
from tests.fakes.broker_books import CANARY, MIB
from tests.fakes.broker_server import FakeDaemon
from tests.nodes import wait_until

Link = Callable[..., Linked]
BOTH_WAYS = True
STORE = SafetyClass.STORE


def use_of(lease_id: str) -> LeaseUse:
    return LeaseUse(lease_id=lease_id, used_bytes=1, copy_bytes=1, idle_seconds=0.0)


def open_slabs() -> int:
    """How many descriptors of slabs this process has, the fake's included."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            count += "memfd:slab" in str(entry.readlink())
    return count


def borrow(session: Linked) -> str:
    """A lease that the listener then names; its descriptor is closed."""
    grant = session.acquire(4 * MIB, STORE, seconds=5.0)
    assert grant.descriptor is not None
    os.close(grant.descriptor)
    session.listener.uses.append(use_of(grant.lease_id))
    return grant.lease_id


def test_start_attaches(daemon: FakeDaemon, link: Link, settings: ClientSettings) -> None:
    """When start returns the session is attached, told so, and knows what the daemon said."""
    session = link(replace(settings, home_gpu="SHM-0", sub_tenant="t", program="server"))
    assert session.attached
    assert session.reason == ""
    assert session.tenant == "uid-0"
    assert session.term_seconds == daemon.term_seconds
    assert (session.smallest_slab_bytes, session.largest_slab_bytes) == (4 * MIB, 32 * MIB)
    assert session.listener.story == ["attached"]
    (hello,) = daemon.hellos
    assert (hello.home_gpu, hello.sub_tenant, hello.program) == ("SHM-0", "t", "server")


def test_without_a_daemon_start_returns_and_says_why(link: Link) -> None:
    """No daemon is no error: start returns at once, and calls fail at once with the reason."""
    before = time.monotonic()
    session = link()
    assert time.monotonic() - before < 4.0
    assert not session.attached
    assert session.reason == "no_daemon"
    assert (session.tenant, session.term_seconds, session.largest_slab_bytes) == ("", 0.0, 0)
    with pytest.raises(BrokerUnreachable) as caught:
        session.acquire(4 * MIB, STORE, seconds=5.0)
    assert caught.value.reason == "no_daemon"
    assert session.counters.call_failures == {"no_daemon": 1}


def test_a_daemon_that_comes_later_is_found(settings: ClientSettings, link: Link, way: str) -> None:
    """The session goes on trying in the background."""
    session = link()
    with FakeDaemon(settings.socket_path, way=way) as daemon:
        wait_until(lambda: session.attached, what="attached")
        assert borrow(session) in daemon.session.leases


def test_a_socket_that_may_not_be_used_is_said_so(directory: Path, link: Link) -> None:
    """A path that is no socket of a daemon has a reason too."""
    (directory / "aqua.sock.presence").write_text("not a socket")
    assert link().reason == "no_daemon"


def test_a_silent_daemon_does_not_hold_up_start(
    daemon: FakeDaemon, link: Link, settings: ClientSettings
) -> None:
    """A daemon that accepts and says nothing costs connect_seconds, no more."""
    daemon.hangs = True
    before = time.monotonic()
    session = link(replace(settings, connect_seconds=0.2))
    assert time.monotonic() - before < 2.0
    assert not session.attached
    wait_until(lambda: session.reason == "silent", what="the greeting times out")
    daemon.hangs = False
    wait_until(lambda: session.attached, what="attached in the end")


def test_a_refused_hello_is_tried_again(daemon: FakeDaemon, link: Link) -> None:
    """The reason shows while it lasts."""
    daemon.refuse_hello = "UNAVAILABLE"
    session = link()
    assert session.reason == "refused"
    daemon.refuse_hello = None
    wait_until(lambda: session.attached, what="attached")


@pytest.mark.parametrize("who_refuses", ["daemon", "client"])
def test_a_daemon_of_a_far_release_is_named_and_left_alone(
    daemon: FakeDaemon, link: Link, caplog: pytest.LogCaptureFixture, who_refuses: str
) -> None:
    """One warning says what to do, the reason is `protocol`, and the right daemon is found."""
    if who_refuses == "daemon":
        daemon.refuse_hello, daemon.refusal_reason = "INVALID_ARGUMENT", "protocol"
    else:
        daemon.protocol = 99
    session = link()
    assert session.reason == "protocol"
    wait_until(lambda: len(daemon.hellos) >= 2, what="it is tried again")
    daemon.refuse_hello, daemon.protocol = None, 2
    wait_until(lambda: session.attached, what="attached")
    (warned,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    said = "go away" if who_refuses == "daemon" else "speaks protocol 99, this client 1 to 2"
    assert said in warned


@pytest.mark.parametrize("comes", ["before", "after"])
def test_acquire_brings_the_slab(daemon: FakeDaemon, link: Link, comes: str) -> None:
    """Whichever of reply and descriptor comes first, the grant has both, and the memory is it."""
    daemon.descriptor_comes = comes
    grant = link().acquire(4 * MIB, STORE, seconds=5.0)
    assert (grant.lender_gpu, grant.nbytes) == ("SHM-1", 4 * MIB)
    assert (grant.safety_class, grant.keeper_pid) == (STORE, 1)
    assert grant.descriptor is not None
    assert os.pread(grant.descriptor, 64, 0) == grant.canary == CANARY
    assert not os.get_inheritable(grant.descriptor)
    os.close(grant.descriptor)


def test_a_descriptor_that_never_comes_ends_in_time(daemon: FakeDaemon, link: Link) -> None:
    """A grant without its memory is none, at the deadline."""
    daemon.descriptor_comes = "never"
    before = time.monotonic()
    with pytest.raises(BrokerUnreachable) as caught:
        link().acquire(4 * MIB, STORE, seconds=0.3)
    assert caught.value.reason == "timeout"
    assert time.monotonic() - before < 3.0


def test_a_cuda_handle_comes_with_the_reply(daemon: FakeDaemon, link: Link) -> None:
    """Nothing is waited for."""
    daemon.grants_cuda = True
    grant = link().acquire(4 * MIB, SafetyClass.CACHE, seconds=5.0)
    assert grant.descriptor is None
    assert len(grant.cuda_ipc) == 64


def test_threads_acquire_side_by_side(daemon: FakeDaemon, link: Link) -> None:
    """Each gets its own lease and its own descriptor."""
    session, grants = link(), []

    def acquire() -> None:
        grants.append(session.acquire(4 * MIB, STORE, seconds=10.0))

    threads = [threading.Thread(target=acquire) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.lease_id for one in grants} == daemon.session.leases
    descriptors = {one.descriptor for one in grants if one.descriptor is not None}
    assert len(descriptors) == 8
    for descriptor in descriptors:
        os.close(descriptor)


def test_returns_tell_which_leases_were_known(daemon: FakeDaemon, link: Link) -> None:
    """Release and acknowledge end the lease once; a second time nothing happens."""
    session = link()
    first, second = borrow(session), borrow(session)
    room = HostRoom(revision=2, nbytes=9)
    assert session.release([first, "f" * 32], room) == {first}
    assert session.release([first], room) == set()
    assert session.acknowledge([second], room, seconds=5.0) == {second}
    assert daemon.session.leases == set()


def test_host_room_is_set(daemon: FakeDaemon, link: Link) -> None:
    """The daemon says what is in force."""
    room = HostRoom(revision=2, nbytes=9)
    assert link().reserve_host(room) == room
    assert daemon.calls[-1][0] == "ReserveHost"


@pytest.mark.parametrize(
    ("status", "reason", "error", "shown"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "no_room", Refused, "no_room"),
        (grpc.StatusCode.UNAVAILABLE, "restarting", Refused, "restarting"),
        (grpc.StatusCode.INVALID_ARGUMENT, "", Refused, "invalid_argument"),
        (grpc.StatusCode.PERMISSION_DENIED, "not_permitted", NotAnOwner, "not_permitted"),
        (grpc.StatusCode.UNAUTHENTICATED, "", BrokerUnreachable, "lost"),
    ],
)
def test_a_refusal_has_its_reason_and_opens_no_breaker(
    daemon: FakeDaemon,
    link: Link,
    status: grpc.StatusCode,
    reason: str,
    error: type[Exception],
    shown: str,
) -> None:
    """What the daemon answers is an answer, whatever status it has."""
    daemon.refuse["Acquire"] = (status, reason)
    session = link()
    for _ in range(2):
        with pytest.raises(error) as caught:
            session.acquire(4 * MIB, STORE, seconds=5.0)
        assert getattr(caught.value, "reason", "") == shown
    assert session.reason == ""
    assert session.counters.call_failures == {shown: 2}
    del daemon.refuse["Acquire"]
    borrow(session)


def test_a_refusal_closes_the_breaker(daemon: FakeDaemon, link: Link) -> None:
    """Who says no has answered: it may be asked again at once."""
    daemon.term_seconds = 60.0  # so that only the breaker is at work
    session = link()
    daemon.hangs = True
    with pytest.raises(BrokerUnreachable):
        session.acquire(4 * MIB, STORE, seconds=0.3)
    assert session.reason == "breaker"
    daemon.refuse["Acquire"] = (grpc.StatusCode.RESOURCE_EXHAUSTED, "no_room")
    daemon.hangs = False

    def is_refused() -> bool:
        try:
            session.acquire(4 * MIB, STORE, seconds=5.0)
        except BrokerUnreachable:
            return False
        except Refused:
            return True
        raise AssertionError("it was granted")

    wait_until(is_refused, what="a probe goes through")
    assert session.reason == ""


def test_keepalives_name_every_lease(daemon: FakeDaemon, link: Link) -> None:
    """Each third of a term, with the leases and the host room of that moment."""
    session = link()
    lease = borrow(session)
    session.listener.room = HostRoom(revision=5, nbytes=7)
    count = len(daemon.keepalives)
    wait_until(lambda: len(daemon.keepalives) >= count + 2, what="two keepalives")
    newest = daemon.keepalives[-1]
    assert [use.lease_id for use in newest.leases] == [lease]
    assert (newest.host_room.revision, newest.host_room.nbytes) == (5, 7)
    sequences = [one.sequence for one in daemon.keepalives]
    assert sequences == sorted(set(sequences))


def test_pushes_reach_the_listener(daemon: FakeDaemon, link: Link) -> None:
    """Revokes with their deadline, losses with their reason, ended leases of a keepalive."""
    session = link()
    lease = borrow(session)
    before = time.monotonic()
    daemon.session.push_revoke([lease], deadline_seconds=2.0)
    daemon.session.push_lost([lease], "keeper")
    daemon.ended_leases.add(lease)
    wait_until(lambda: session.listener.ended, what="the keepalive's answer")
    (notice,) = session.listener.revokes
    assert (notice.lease_ids, notice.lender_gpu) == ((lease,), "SHM-1")
    assert before + 2.0 <= notice.deadline <= time.monotonic() + 2.0
    assert session.listener.lost == [(lease, "keeper")]
    assert set(session.listener.ended) == {lease}


def test_a_late_descriptor_is_closed(daemon: FakeDaemon, link: Link) -> None:
    """One that nobody waits for would keep a slab's memory alive."""
    session = link()
    before = open_slabs()  # another test's, that failed, would still be there
    for _ in range(20):
        daemon.session.push_descriptor("e" * 32)
    daemon.session.push_lost(["e" * 32], "mark")
    wait_until(lambda: session.listener.lost, what="all that came before is read")
    wait_until(lambda: open_slabs() <= before, what="the fake has closed its own copies too")


def test_a_fault_of_the_listener_does_not_end_the_session(
    daemon: FakeDaemon, link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the session attaches again."""
    session = link()
    session.listener.fails = True
    daemon.session.push_revoke(["a" * 32])
    wait_until(lambda: session.counters.session_reattaches, what="attached again")
    assert "a fault of the listener" in caplog.text
    session.listener.fails = False
    borrow(session)


def test_close_says_goodbye_and_ends_everything(daemon: FakeDaemon, link: Link) -> None:
    """The daemon is told, the thread and the sentinel end, and calls fail at once."""
    session = link()
    borrow(session)
    session.close(seconds=5.0)
    wait_until(lambda: daemon.goodbyes, what="goodbye")
    wait_until(daemon.session.sentinel_has_ended, what="the sentinel ends")
    assert not any(thread.name == "aqua-session" for thread in threading.enumerate())
    with pytest.raises(BrokerUnreachable) as caught:
        session.acquire(4 * MIB, STORE, seconds=5.0)
    assert caught.value.reason == "closed"
    session.close()


def test_close_does_not_wait_for_a_daemon(daemon: FakeDaemon, link: Link) -> None:
    """A daemon that hangs, or none at all, does not hold up the end of a process."""
    session = link()
    daemon.hangs = True
    before = time.monotonic()
    session.close(seconds=0.2)
    assert time.monotonic() - before < 2.0


def test_a_session_never_started_closes(settings: ClientSettings) -> None:
    """There is nothing to say, and nothing stays open (ResourceWarnings are errors here)."""
    session = Linked(settings)
    session.close()
    assert session.reason == "starting"
    with pytest.raises(BrokerUnreachable) as caught:
        session.acquire(4 * MIB, STORE, seconds=5.0)
    assert caught.value.reason == "closed"
