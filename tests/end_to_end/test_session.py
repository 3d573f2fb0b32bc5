"""The client's session against a real node: daemon and keeper are processes, killed for real."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from aqua_protos import broker_pb2

from aqua_client.calls import TOKEN_KEY
from aqua_client.counters import Counters
from aqua_client.errors import BrokerUnreachable, NotAnOwner, Refused
from aqua_client.producing import producer
from aqua_client.records import Grant, HostRoom, LeaseUse, SafetyClass
from aqua_client.session import Session
from aqua_client.settings import ClientSettings
from tests.fakes.listening import Recorder
from tests.nodes import MIB, REPOSITORY, Node, environment, read_line, running_node, wait_until

SLAB = 4 * MIB
STORE = SafetyClass.STORE


class Borrower(Session):
    """A session on SHM-0 that names what it borrows."""

    def __init__(self, node: Node) -> None:
        self.listener = Recorder()
        self.counters = Counters()
        settings = ClientSettings(
            socket_path=node.socket, home_gpu="SHM-0", connect_seconds=10.0, call_seconds=10.0
        )
        super().__init__(settings, self.listener, self.counters)

    def borrow(self) -> Grant:
        grant = self.acquire(SLAB, STORE, seconds=10.0)
        use = LeaseUse(lease_id=grant.lease_id, used_bytes=SLAB, copy_bytes=SLAB, idle_seconds=0.0)
        self.listener.uses.append(use)
        return grant

    def give_back(self, grant: Grant) -> set[str]:
        """Close what it was mapped by, then release."""
        close(grant)
        self.listener.uses = [one for one in self.listener.uses if one.lease_id != grant.lease_id]
        return self.release([grant.lease_id], self.listener.room)

    def can_borrow(self) -> bool:
        try:
            return self.give_back(self.borrow()) != set()
        except (Refused, BrokerUnreachable):
            return False


def close(grant: Grant) -> None:
    assert grant.descriptor is not None
    os.close(grant.descriptor)


@pytest.fixture
def node() -> Iterator[Node]:
    with running_node(gpus=3, gpu_bytes=64 * MIB) as made:
        yield made


@contextmanager
def borrowing(node: Node) -> Iterator[Borrower]:
    session = Borrower(node)
    session.start()
    assert session.attached, session.reason
    try:
        yield session
    finally:
        session.close(seconds=10.0)


def state(node: Node, session: Session) -> broker_pb2.GetStateReply:
    """The daemon's own view, asked with the session's token."""
    welcome = session._presence.standing.welcome
    assert welcome is not None
    with grpc.insecure_channel(f"unix:{node.socket}") as channel:
        ask = channel.unary_unary(
            "/aqua.broker.v1.Broker/GetState",
            request_serializer=broker_pb2.GetStateRequest.SerializeToString,
            response_deserializer=broker_pb2.GetStateReply.FromString,
        )
        metadata = ((TOKEN_KEY, welcome.token),)
        return ask(broker_pb2.GetStateRequest(), timeout=10.0, metadata=metadata)


def leases(node: Node, session: Session) -> dict[str, int]:
    return {one.lease_id: one.state for one in state(node, session).leases}


def test_a_slab_is_borrowed_mapped_and_given_back(node: Node) -> None:
    """The grant's memory is the slab's: its canary is there, it can be written, and it goes back."""
    with borrowing(node) as session:
        assert session.tenant
        grant = session.borrow()
        assert grant.descriptor is not None
        assert grant.lender_gpu in {"SHM-1", "SHM-2"}
        assert grant.keeper_pid == node.keeper_pid()
        with mmap.mmap(grant.descriptor, SLAB) as memory:
            assert memory[:64] == grant.canary
            memory[:3] = b"abc"
            assert memory[:3] == b"abc"
        assert leases(node, session) == {grant.lease_id: broker_pb2.LEASE_STATE_LEASED}
        assert session.give_back(grant) == {grant.lease_id}
        wait_until(lambda: not leases(node, session), what="the slab is freed")
        assert session.release([grant.lease_id], session.listener.room) == set()


def test_the_daemon_killed_and_the_next_one_has_the_same_leases(node: Node) -> None:
    """SIGKILL: the session is detached, then re-attached with its leases, and no byte is lost."""
    with borrowing(node) as session:
        grant = session.borrow()
        assert grant.descriptor is not None
        with mmap.mmap(grant.descriptor, SLAB) as memory:
            memory[:3] = b"abc"
            node.kill_daemon()
            wait_until(lambda: not session.attached, what="detached")
            before = time.monotonic()
            with pytest.raises(BrokerUnreachable):
                session.acquire(SLAB, STORE, seconds=10.0)
            assert time.monotonic() - before < 5.0
            assert memory[:3] == b"abc"
            node.start_daemon()
            wait_until(lambda: session.attached, what="re-attached")
            assert memory[:3] == b"abc"
        assert session.listener.ended == []
        assert session.counters.session_opens == 1
        assert leases(node, session) == {grant.lease_id: broker_pb2.LEASE_STATE_LEASED}
        assert session.give_back(grant) == {grant.lease_id}
        wait_until(session.can_borrow, seconds=30.0, what="leases are to be had again")


def test_a_daemon_that_stops_in_order_says_so(node: Node) -> None:
    """SIGTERM: the session hears `restarting`, and the next daemon has its leases."""
    with borrowing(node) as session:
        grant = session.borrow()
        node.restart_daemon(graceful=True)
        wait_until(lambda: session.counters.session_reattaches, what="re-attached")
        assert session.listener.story[1] == "restarting"
        assert leases(node, session) == {grant.lease_id: broker_pb2.LEASE_STATE_LEASED}
        session.give_back(grant)


def test_a_stopped_daemon_costs_one_deadline(node: Node) -> None:
    """SIGSTOP: one call waits, the rest fail at once; SIGCONT: everything goes on."""
    with borrowing(node) as session:
        assert session.can_borrow()
        node.stop_daemon()
        seconds = []
        for _ in range(20):
            before = time.monotonic()
            with pytest.raises(BrokerUnreachable):
                session.acquire(SLAB, STORE, seconds=0.5)
            seconds.append(time.monotonic() - before)
        assert max(seconds) < 5.0
        assert sum(1 for one in seconds if one > 0.25) <= 3
        node.continue_daemon()
        wait_until(session.can_borrow, seconds=30.0, what="the daemon answers again")


def test_host_room_is_what_the_daemon_counts(node: Node) -> None:
    """A reservation is in the node's ledger; too large a one is refused and changes nothing."""
    with borrowing(node) as session:
        room = HostRoom(revision=1, nbytes=8 * MIB)
        assert session.reserve_host(room) == room
        session.listener.room = room
        reserved = state(node, session).host_reserved_bytes
        assert reserved == 8 * MIB
        with pytest.raises(Refused) as caught:
            session.reserve_host(HostRoom(revision=2, nbytes=2**44))
        assert caught.value.reason == "no_host_room"
        assert state(node, session).host_reserved_bytes == reserved


def test_a_node_without_room_says_so(node: Node) -> None:
    """No more is granted than may be lent, and the reason is a label."""
    with borrowing(node) as session:
        grants: list[Grant] = []
        reason = ""
        while not reason and len(grants) < 100:
            try:
                grants.append(session.borrow())
            except Refused as error:
                reason = error.reason
        assert reason == "no_room"
        assert 2 <= len(grants) < 32
        for grant in grants:
            assert session.give_back(grant) == {grant.lease_id}


def test_goodbye_returns_what_was_held(node: Node) -> None:
    """A session that closes leaves nothing behind, though its process lives on."""
    with borrowing(node) as watcher:
        with borrowing(node) as session:
            grant = session.borrow()
            assert grant.lease_id in leases(node, watcher)
            close(grant)
        wait_until(lambda: not leases(node, watcher), what="the slab is freed")


PRODUCE = """
import json, sys
from aqua_client.producing import producer
from aqua_client.settings import ClientSettings

settings = ClientSettings(socket_path=sys.argv[1], connect_seconds=10.0, call_seconds=10.0)
with producer("SHM-1", settings=settings) as mine:
    offered = mine.lend(32 * 2**20)
    print(json.dumps({"event": "loaded", "offered": offered.offered_bytes}), flush=True)
    sys.stdin.readline()
    result = mine.reclaim(4 * 2**20, deadline=10.0)
    print(json.dumps([result.asked_bytes, result.freed_bytes, result.complete]), flush=True)
"""


def test_an_owner_gets_its_memory_back(node: Node) -> None:
    """The borrower is asked, gives back, and the producer hears that the bytes are free."""
    with borrowing(node) as session:
        grants = [session.borrow(), session.borrow()]
        (grant,) = [one for one in grants if one.lender_gpu == "SHM-1"][:1]
        command = (sys.executable, "-c", PRODUCE, node.socket)
        words = [sys.executable, "-m", "aqua_daemon", "load", "--gpu", "SHM-1", "--bytes", "2MiB"]
        with subprocess.Popen(
            [*words, "--keeper-socket", node.keeper_socket, "--", *command],
            cwd=REPOSITORY,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as owner:
            assert owner.stdout is not None
            while "offered" not in read_line(owner.stdout, seconds=20.0):
                assert owner.poll() is None
            assert owner.stdin is not None
            owner.stdin.write("go\n")
            owner.stdin.flush()
            wait_until(lambda: session.listener.revokes, what="the revoke")
            notice = session.listener.revokes[-1]
            assert (notice.lender_gpu, notice.lease_ids) == ("SHM-1", (grant.lease_id,))
            close(grant)
            known = session.acknowledge(notice.lease_ids, session.listener.room)
            assert known == {grant.lease_id}
            assert read_line(owner.stdout, seconds=20.0) == f"[{SLAB}, {SLAB}, true]\n"
            assert owner.wait(10.0) == 0
        for one in grants:
            if one is not grant:
                session.give_back(one)


def test_who_does_not_use_a_gpu_does_not_speak_for_it(node: Node) -> None:
    """NotAnOwner, with the remedy."""
    settings = ClientSettings(socket_path=node.socket, connect_seconds=10.0, call_seconds=10.0)
    with (
        producer("SHM-1", settings=settings) as nobody,
        pytest.raises(NotAnOwner, match="SHM-1"),
    ):
        nobody.lend(4 * MIB)


def test_a_killed_client_is_noticed(node: Node) -> None:
    """Its leases end without any word of its own."""
    program = (
        "import os, sys; from tests.end_to_end.test_session import Borrower\n"
        "class N: socket = sys.argv[1]\n"
        "s = Borrower(N); s.start(); g = s.borrow(); print(g.lease_id, flush=True); sys.stdin.read()"
    )
    with (
        borrowing(node) as watcher,
        subprocess.Popen(
            [sys.executable, "-c", program, node.socket],
            cwd=REPOSITORY,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as client,
    ):
        assert client.stdout is not None
        lease_id = read_line(client.stdout, seconds=20.0).strip()
        assert lease_id in leases(node, watcher)
        client.send_signal(signal.SIGKILL)
        client.wait(10.0)
        wait_until(lambda: lease_id not in leases(node, watcher), what="the slab is freed")
