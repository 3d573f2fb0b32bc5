"""A process that forks, at any moment: the parent's session goes on, children end well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from aqua_client.errors import BrokerUnreachable, ForkedChild
from aqua_client.forking import GATE, ForkGate
from aqua_client.records import SafetyClass
from aqua_client.settings import ClientSettings
from tests.client.conftest import Linked
from tests.client.test_session import borrow
from tests.fakes.broker_books import MIB
from tests.fakes.broker_server import FakeDaemon
from tests.nodes import REPOSITORY, environment, wait_until

Link = Callable[..., Linked]
CLEAN, WRONG = 7, 8


def in_child(action: Callable[[], bool]) -> int:
    """Fork, run *action* in the child, and return its status; a child that hangs is killed."""
    pid = os.fork()
    if pid == 0:
        status = WRONG
        try:
            status = CLEAN if action() else WRONG
        finally:
            os._exit(status)
    return status_of(pid)


def status_of(pid: int) -> int:
    ended: list[int] = []

    def has_ended() -> bool:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            ended.append(os.waitstatus_to_exitcode(status))
        return bool(found)

    try:
        wait_until(has_ended, seconds=10.0, what="the child ends")
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return ended[0]


def output_of(source: str, settings: ClientSettings) -> str:
    """What a program prints that gets the daemon's socket; it has gRPC's fork support as it comes."""
    done = subprocess.run(
        [sys.executable, "-c", source, settings.socket_path],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=50.0,
        check=False,
    )
    return done.stdout or done.stderr


@pytest.mark.usefixtures("process")
def test_every_call_in_a_child_says_so(link: Link) -> None:
    """ForkedChild, from each call, and closing is harmless; the parent goes on."""
    session = link()
    borrow(session)
    room = session.listener.room

    def all_raise() -> bool:
        calls: list[Callable[[], object]] = [
            session.start,
            lambda: session.acquire(4 * MIB, SafetyClass.STORE, seconds=1.0),
            lambda: session.release(["a"], room),
            lambda: session.acknowledge(["a"], room),
            lambda: session.reserve_host(room),
            lambda: session.offer("SHM-1", 0),
            lambda: session.reclaim("SHM-1", 1),
        ]
        raised = 0
        for call in calls:
            try:
                call()
            except ForkedChild:
                raised += 1
        session.abandon_in_child()
        session.close()
        return raised == len(calls) and not session.attached and session.reason == "forked"

    assert in_child(all_raise) == CLEAN
    borrow(session)
    assert session.listener.story == ["attached"]


def test_a_child_keeps_the_sentinel_and_nothing_else(daemon: FakeDaemon, link: Link) -> None:
    """Presence ends with the parent; the sentinel only with the last process that may map slabs."""
    go_on, tell = os.pipe()
    session = link()
    pid = os.fork()
    if pid == 0:
        os.close(tell)
        os.read(go_on, 1)
        os._exit(0)
    os.close(go_on)
    session.close(seconds=5.0)
    wait_until(lambda: daemon.goodbyes, what="goodbye")
    assert not daemon.session.sentinel_has_ended(), "the child lives"
    os.close(tell)
    status_of(pid)
    wait_until(daemon.session.sentinel_has_ended, what="the sentinel ends with the child")


def test_a_program_that_a_child_becomes_inherits_nothing(daemon: FakeDaemon, link: Link) -> None:
    """Every descriptor of the session is close-on-exec, the sentinel's too."""
    session = link()
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False
    ) as other:
        session.close(seconds=5.0)
        wait_until(daemon.session.sentinel_has_ended, what="the sentinel ends")
        assert other.poll() is None


CALLS_GO_ON = """
import os, sys, threading
from aqua_client.errors import AquaError
from aqua_client.records import SafetyClass
from aqua_client.settings import ClientSettings
from tests.client.conftest import Linked
from tests.client.test_forking import CLEAN, in_child
from tests.fakes.broker_books import MIB

session = Linked(ClientSettings(socket_path=sys.argv[1], connect_seconds=10.0))
session.start()
failures, is_over = [], threading.Event()

def work():
    while not is_over.is_set():
        try:
            lease = session.acquire(4 * MIB, SafetyClass.STORE, seconds=5.0)
            os.close(lease.descriptor)
            session.release([lease.lease_id], session.listener.room)
        except AquaError as error:
            failures.append(error)

workers = [threading.Thread(target=work) for _ in range(2)]
for worker in workers:
    worker.start()
statuses = {in_child(lambda: True) for _ in range(30)}
is_over.set()
for worker in workers:
    worker.join()
print(statuses == {CLEAN}, failures, session.listener.story)
"""


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("way", ["frames", "grpc"])
def test_children_that_never_touch_the_library_end_well(settings: ClientSettings) -> None:
    """And the parent's calls, out on other threads while it forks, all get their answers."""
    assert output_of(CALLS_GO_ON, settings) == "True [] ['attached']\n"


ENDS_PROPERLY = """
import os, sys
from pathlib import Path
from tests.client.conftest import Linked
from tests.client.test_session import borrow
from aqua_client.settings import ClientSettings

session = Linked(ClientSettings(socket_path=sys.argv[1], connect_seconds=10.0, call_seconds=10.0))
session.start()
borrow(session)
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        sys.exit(0)  # the whole way: atexit, then every module's objects
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
borrow(session)
print("all ended")
"""


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("way", ["frames", "grpc"])
def test_children_may_end_the_whole_interpreter(settings: ClientSettings) -> None:
    """A child that ends as programs do closes no channel of its parent's, which would hang it."""
    assert output_of(ENDS_PROPERLY, settings) == "all ended\n"


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("way", ["grpc"])
def test_a_child_of_a_process_that_used_grpc_stays_off_it(link: Link) -> None:
    """A session of its own does not hang there: it says `forked`, and host memory is used."""
    session = link()
    borrow(session)

    def connects_anew() -> bool:
        mine = link()
        try:
            mine.acquire(4 * MIB, SafetyClass.STORE, seconds=5.0)
        except BrokerUnreachable as error:
            return error.reason == "forked" and not mine.attached
        return False

    assert in_child(connects_anew) == CLEAN


def test_a_session_that_closes_in_the_parent_is_unmoved_by_old_children(
    daemon: FakeDaemon, link: Link
) -> None:
    """Fork, then go on: keepalives, calls and pushes as before."""
    session = link()
    lease = borrow(session)
    assert in_child(lambda: True) == CLEAN
    daemon.session.push_revoke([lease])
    count = len(daemon.keepalives)
    wait_until(lambda: session.listener.revokes, what="a push")
    wait_until(lambda: len(daemon.keepalives) > count, what="a keepalive")
    assert session.acknowledge([lease], session.listener.room) == {lease}


def test_a_fork_waits_for_the_calls_that_are_out() -> None:
    """And a call that comes during a fork waits for its end."""
    gate, story = ForkGate(patience_seconds=20.0), []
    call_may_end = threading.Event()

    def call(name: str) -> None:
        with gate.call_out():
            story.append(f"{name} out")
            call_may_end.wait(10.0)
        story.append(f"{name} back")

    first = threading.Thread(target=call, args=("first",))
    first.start()
    wait_until(lambda: story == ["first out"])
    threading.Timer(0.05, call_may_end.set).start()
    gate.before_fork()
    assert call_may_end.is_set()
    wait_until(lambda: story == ["first out", "first back"])
    second = threading.Thread(target=call, args=("second",))
    second.start()
    second.join(0.05)  # time to go out, if nothing held it back
    story.append("fork")
    gate.after_fork_in_parent()
    for thread in (first, second):
        thread.join(10.0)
    assert story == ["first out", "first back", "fork", "second out", "second back"]


def test_a_child_is_free_of_a_lock_that_a_thread_held() -> None:
    """Whoever held it did not come along: calls of the child's own go out all the same."""
    is_held, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        with GATE._change:
            is_held.set()
            may_go.wait(20.0)

    def calls() -> bool:
        with GATE.call_out():
            return True

    holder = threading.Thread(target=hold)
    holder.start()
    assert is_held.wait(10.0)
    try:
        assert in_child(calls) == CLEAN
    finally:
        may_go.set()
        holder.join()


def test_a_stuck_call_does_not_hold_up_a_fork() -> None:
    """Nor does a fork that never ends hold up a call, nor a lock that a thread took along."""
    gate = ForkGate()
    with gate.call_out():
        gate.before_fork()
        with gate.call_out():
            pass
        with gate._change:
            gate.after_fork_in_child()
    with gate.call_out():
        gate.before_fork()
        gate.after_fork_in_parent()
