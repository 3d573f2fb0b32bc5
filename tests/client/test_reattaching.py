"""A session outlives daemons: lost links, restarts, daemons that forgot or fall silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from aqua_client.errors import AquaError, BrokerUnreachable
from aqua_client.records import HostRoom
from aqua_client.settings import ClientSettings
from tests.client.conftest import Linked
from tests.client.test_session import STORE, borrow
from tests.fakes.broker_books import MIB
from tests.fakes.broker_server import FakeDaemon
from tests.nodes import wait_until

Link = Callable[..., Linked]
BOTH_WAYS = True


def test_a_lost_link_is_attached_again(daemon: FakeDaemon, link: Link) -> None:
    """The same session, its leases and host room, a new token that works."""
    session = link()
    lease = borrow(session)
    session.listener.room = HostRoom(revision=4, nbytes=6)
    name = daemon.session.session_id
    daemon.drop_links()
    wait_until(lambda: session.counters.session_reattaches == 1, what="attached again")
    hello = daemon.hellos[-1]
    assert hello.session_id == name
    assert [use.lease_id for use in hello.leases] == [lease]
    assert (hello.host_room.revision, hello.host_room.nbytes) == (4, 6)
    wait_until(lambda: session.listener.story == ["attached", "lost", "attached"])
    borrow(session)
    assert session.listener.ended == []
    assert len(daemon.books.sessions) == 1


def test_a_greeting_tells_what_of_the_figures_was_heard(daemon: FakeDaemon, link: Link) -> None:
    """Answered keepalives count, those that nobody answered do not: the next one tells them."""
    session = link()
    assert not daemon.hellos[0].HasField("figures")
    session.counters.evacuated_bytes = 5
    wait_until(
        lambda: any(one.figures.evacuated_bytes == 5 for one in daemon.keepalives),
        what="the figures are told",
    )
    count = len(daemon.keepalives)
    wait_until(lambda: len(daemon.keepalives) > count, what="an answer was heard")
    daemon.is_silent = True
    session.counters.evacuated_bytes = 7
    wait_until(lambda: daemon.keepalives[-1].figures.evacuated_bytes == 7, what="unanswered")
    daemon.drop_links()
    wait_until(lambda: session.counters.session_reattaches == 1, what="attached again")
    assert daemon.hellos[-1].figures.evacuated_bytes == 5


def test_figures_that_were_heard_are_not_told_again(daemon: FakeDaemon, link: Link) -> None:
    """An idle client has no news; what it does next is told."""
    session = link()

    def is_told() -> bool:
        told = [one.figures.evacuated_bytes for one in daemon.keepalives]
        return session.counters.evacuated_bytes in told

    for nbytes in (5, 7):
        session.counters.evacuated_bytes = nbytes
        wait_until(is_told, what="the figures are told")
        wait_until(lambda: not daemon.keepalives[-1].HasField("figures"), what="no news")


def test_the_next_daemon_is_found_and_keeps_the_leases(
    settings: ClientSettings, link: Link, way: str
) -> None:
    """Between two daemons calls fail at once; afterwards everything goes on."""
    with FakeDaemon(settings.socket_path, way=way) as first:
        session = link()
        lease = borrow(session)
        first.die()
        wait_until(lambda: not session.attached, what="the end of the first is seen")
        before = time.monotonic()
        with pytest.raises(BrokerUnreachable):
            session.acquire(4 * MIB, STORE, seconds=5.0)
        assert time.monotonic() - before < 2.0
        assert not first.session.sentinel_has_ended()
        with FakeDaemon(settings.socket_path, first.books, way=way) as second:
            wait_until(lambda: session.attached, what="the second is found")
            assert session.release([lease], session.listener.room) == {lease}
            assert second.hellos[-1].session_id == second.session.session_id
            session.close(seconds=5.0)


def test_a_daemon_that_knows_no_such_session_gets_a_new_one(
    settings: ClientSettings, link: Link, way: str
) -> None:
    """The leases of the old one have ended, and the old sentinel stays: slabs may be mapped yet."""
    with FakeDaemon(settings.socket_path, way=way) as first:
        session = link()
        lease = borrow(session)
        first.die()
        with FakeDaemon(settings.socket_path, way=way) as second:
            wait_until(lambda: session.counters.session_opens == 2, what="the second is found")
            assert session.listener.ended == [lease]
            assert second.hellos[-1].session_id == ""
            assert not list(second.hellos[-1].leases)
            assert not first.session.sentinel_has_ended()
            borrow(session)
            session.close(seconds=5.0)
        wait_until(first.session.sentinel_has_ended, what="closing ends both sentinels")


def test_a_daemon_that_says_it_restarts_is_left_at_once(daemon: FakeDaemon, link: Link) -> None:
    """The reason is shown, and another try follows soon."""
    session = link()
    daemon.session.push_restarting()
    wait_until(lambda: session.counters.session_reattaches == 1, what="attached again")
    assert session.listener.story == ["attached", "restarting", "attached"]


def test_leases_that_a_welcome_calls_ended_are_told(settings: ClientSettings, link: Link) -> None:
    """Also those that the next keepalive would have told, and long before that."""
    with FakeDaemon(settings.socket_path, term_seconds=300.0) as daemon:
        session = link()
        lease = borrow(session)
        daemon.ended_leases.add(lease)
        daemon.drop_links()
        wait_until(lambda: session.listener.ended, what="told")
        assert set(session.listener.ended) == {lease}


def test_a_daemon_that_answers_no_keepalives_is_left(daemon: FakeDaemon, link: Link) -> None:
    """After two of them unanswered the link is given up and made anew."""
    session = link()
    daemon.is_silent = True
    wait_until(lambda: "silent" in session.listener.story, what="the silence is noticed")
    daemon.is_silent = False
    wait_until(lambda: session.attached and session.listener.story[-1] == "attached")


def test_a_call_that_is_out_when_the_link_ends_is_given_up(daemon: FakeDaemon, link: Link) -> None:
    """Nobody waits for a reply that belongs to a dead connection."""
    session, failures = link(), []

    def acquire() -> None:
        try:
            session.acquire(4 * MIB, STORE, seconds=30.0)
        except AquaError as error:
            failures.append(error)

    daemon.hangs = True
    caller = threading.Thread(target=acquire)
    caller.start()
    wait_until(lambda: daemon.calls, what="the call is out")
    daemon.drop_links()
    caller.join(10.0)
    assert [type(one) for one in failures] == [BrokerUnreachable]
    daemon.hangs = False
    wait_until(lambda: session.counters.session_reattaches, what="attached again")
    borrow(session)


def test_a_daemon_without_a_sentinel_gives_another(
    settings: ClientSettings, link: Link, way: str
) -> None:
    """A new daemon that adopted nothing of the session has lost its end; both are kept."""
    with FakeDaemon(settings.socket_path, way=way) as first:
        session = link()
        first.die()
        with FakeDaemon(settings.socket_path, first.books, way=way) as second:
            second.sends_sentinels_again = True
            wait_until(lambda: session.counters.session_reattaches, what="the second is found")
            assert not second.session.sentinel_has_ended()
            session.close(seconds=5.0)
            wait_until(second.session.sentinel_has_ended, what="closing ends it")


def test_sentinels_that_nobody_watches_are_closed(
    settings: ClientSettings, link: Link, way: str
) -> None:
    """A process that outlives many daemons does not hold a descriptor for each of them."""
    with FakeDaemon(settings.socket_path, way=way) as first:
        session = link()
        first.die()
        for _ in range(3):
            before = session.counters.session_reattaches
            with FakeDaemon(
                settings.socket_path, first.books, term_seconds=300.0, way=way
            ) as daemon:  # no answer is late, or it would be left and found twice
                daemon.sends_sentinels_again = True
                wait_until(
                    lambda daemon=daemon, before=before: (  # type: ignore[misc] # defaults bind them
                        daemon.hellos and session.counters.session_reattaches > before
                    ),
                    what="the next one is found",
                )
                assert len(session._presence._sentinels) == 1
                assert not daemon.session.sentinel_has_ended()
                daemon.die()
