"""Forks at every line of the library that a busy client comes by, whatever lock is held there.

A trace stops a thread of the client's at a line it has not been at before; the process forks; the
child tries every call. Covers the client over a made-up node, and its worker's thread.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import pytest
import torch

import aqua_client
from aqua_client import batches, forking
from aqua_client import client as client_module
from aqua_client.client import Client
from aqua_client.pools import BlockPool, Slots
from aqua_client.records import SafetyClass
from aqua_client.session import Session
from aqua_client.settings import ClientSettings
from aqua_client.tensors import OffloadedTensor
from tests.client.conftest import Linked
from tests.client.pagers import random_bytes, wait_acknowledged
from tests.client.test_forking import CLEAN, status_of
from tests.fakes.session import MIB, FakeNode
from tests.nodes import short_directory

if TYPE_CHECKING:
    from _typeshed import TraceFunction

LIBRARY = str(Path(aqua_client.__file__).parent)
CHILD_SECONDS = 10  # then it says where it hangs, and ends
ON_OTHERS_SECONDS = 50.0
SERVED_SECONDS = 90.0  # by a thread that stops for a fork at each of some hundred lines
MOST_CHILDREN = 8
SETTINGS = ClientSettings(host_limit_bytes=256 * MIB, acquire_seconds=30.0, close_seconds=5.0)
BLOCKS = torch.arange(40, dtype=torch.float32).view(10, 4)


class Stops:
    """Where threads of the library stop so that the process may fork."""

    def __init__(self, every: int) -> None:
        self.seen: set[tuple[str, int]] = set()
        self.asked: queue.Queue[tuple[str, threading.Event] | None] = queue.Queue()
        self.faults: list[BaseException] = []
        self._every = every
        self._is_over = False

    def trace(self, frame: FrameType, _event: str, _arg: object) -> TraceFunction | None:
        """What `sys.settrace` wants."""
        path = frame.f_code.co_filename
        # Whoever forks waits for those who are in that file, who would wait for the fork.
        return self._line if path.startswith(LIBRARY) and path != forking.__file__ else None

    def _line(self, frame: FrameType, event: str, _arg: object) -> TraceFunction:
        where = frame.f_code.co_filename, frame.f_lineno
        if event == "line" and where not in self.seen:
            self.seen.add(where)
            if not (len(self.seen) % self._every or self._is_over):
                gone_on = threading.Event()
                self.asked.put((f"{where[0]}:{where[1]}", gone_on))
                gone_on.wait(ON_OTHERS_SECONDS)
        return self._line

    def run(self, use: Callable[[], None]) -> None:
        """What the thread does that is traced from the start."""
        sys.settrace(self.trace)
        try:
            use()
        except BaseException as fault:  # noqa: BLE001 - told by the test's own thread
            self.faults.append(fault)
        finally:
            sys.settrace(None)
            self._is_over = True
            self.asked.put(None)

    def let_go(self) -> None:
        """Of threads that stopped when it was over."""
        while not self.asked.empty():
            asked = self.asked.get()
            if asked is not None:
                asked[1].set()


def fork_while(
    stops: Stops, use: Callable[[], None], child_is_free: Callable[[], bool]
) -> dict[str, int]:
    """Fork wherever a thread stops while *use* runs; where, and the status of who did not end well.

    The library is used in other threads only: this one could wait for one that waits for a fork.
    """
    children: dict[int, str] = {}
    ends: dict[str, int] = {}
    threading.settrace(stops.trace)  # of those that the library makes
    thread = threading.Thread(target=stops.run, args=(use,))
    thread.start()
    while (asked := stops.asked.get(timeout=ON_OTHERS_SECONDS)) is not None:
        where, gone_on = asked
        pid = os.fork()
        if pid == 0:
            _be_child(child_is_free)
        gone_on.set()
        children[pid] = where
        if len(children) > MOST_CHILDREN:
            oldest = next(iter(children))
            ends[children.pop(oldest)] = status_of(oldest)
    threading.settrace(None)
    stops.let_go()
    thread.join()
    ends |= {where: status_of(pid) for pid, where in children.items()}
    return {where: status for where, status in ends.items() if status != CLEAN}


def _be_child(is_free: Callable[[], bool]) -> None:
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(CHILD_SECONDS)
        threading.settrace(None)
        status = CLEAN if is_free() else 1
    except BaseException:  # noqa: BLE001 - there is nobody else to tell
        traceback.print_exc()
    finally:
        os._exit(status)


def forked_child_is_raised(*calls: Callable[[], object]) -> bool:
    """By each of them."""
    for call in calls:
        try:
            call()
        except aqua_client.ForkedChild:
            continue
        return False
    return True


class Story:
    """What the parent does meanwhile, with everything there is."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node
        self._tensor = random_bytes(MIB)
        self._client: Client | None = None
        self._handle: OffloadedTensor | None = None
        self._slots: Slots | None = None

    def use(self) -> None:
        with Client(SETTINGS) as client:
            self._client = client
            pool = client.pool((4,), torch.float32)
            handle = self._handle = client.offload(self._tensor)
            slots = self._slots = pool.store(BLOCKS, [3, 1])
            self._everything(client, pool)
            for gpu in ("SHM-1", "SHM-2"):
                self._revoke(client, gpu)
                self._everything(client, pool)
            assert torch.equal(handle.fetch(), self._tensor)
            again = torch.zeros(2, 4)
            pool.load(slots, again, [0, 1])
            assert torch.equal(again, BLOCKS[[3, 1]])

    def child_is_free(self) -> bool:
        """In a child: every call on what there is says so, and a new client works."""
        tensor, out = self._tensor, torch.empty_like(self._tensor)
        calls: list[Callable[[], object]] = []
        if (client := self._client) is not None:
            calls += [
                lambda: client.offload(tensor),
                lambda: client.offload(tensor, immutable=True),
                lambda: client.offload_many([tensor]),
                lambda: client.pool((4,), torch.float32),
                client.stats,
            ]
        if (handle := self._handle) is not None:
            calls += [handle.fetch, lambda: handle.fetch(out), handle.wait, handle.release]
            calls += [lambda: batches.fetch_many(handle._pager, [handle])]
        if (slots := self._slots) is not None:
            calls += [lambda: slots.pool.store(BLOCKS, [1]), slots.release]
            calls += [lambda: slots.pool.load(slots, torch.empty(2, 4), [0, 1])]
        is_told = forked_child_is_raised(*calls)
        if client is not None:
            client.close()
        client_module.Session = Session  # type: ignore[attr-defined] # the fake's lock may be held
        with warnings.catch_warnings(), aqua_client.connect() as anew:
            warnings.simplefilter("ignore")
            return is_told and torch.equal(anew.offload(tensor[:1000]).fetch(), tensor[:1000])

    def _everything(self, client: Client, pool: BlockPool) -> None:
        large, small = random_bytes(40 * MIB), random_bytes(1000, seed=1)
        handles = [client.offload(large), client.offload(small, keep="cache", overlap=True)]
        assert torch.equal(handles[0].fetch(), large)
        assert torch.equal(handles[1].fetch(torch.empty_like(small)), small)
        handles[0].release()
        kept = client.offload(small, immutable=True)
        assert client.offload(kept.fetch(), immutable=True) is kept
        pair = client.fetch_many(client.offload_many([small, BLOCKS]))
        assert torch.equal(pair[1], BLOCKS)
        slots = pool.store(BLOCKS, range(10))
        again = torch.zeros(10, 4)
        pool.load(slots, again, range(10))
        assert torch.equal(again, BLOCKS)
        client.stats()

    def _revoke(self, client: Client, gpu: str) -> None:
        cached = client.offload(random_bytes(30 * MIB), keep="cache")
        wait_acknowledged(self._node, self._node.revoke(gpu), seconds=SERVED_SECONDS)
        assert cached.tier in ("peer", "lost")
        self._node.gpu_bytes[gpu] = 64 * MIB


@pytest.mark.limit(400)
@pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning")
@pytest.mark.parametrize("every", [15, pytest.param(1, marks=pytest.mark.long)])
def test_a_child_forked_anywhere_is_told_and_free(
    monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """Each call raises ForkedChild and none waits; it may connect anew; the parent goes on."""
    node = FakeNode(gpu_bytes={"SHM-1": 64 * MIB, "SHM-2": 64 * MIB})
    story, stops = Story(node), Stops(every)
    with short_directory() as directory:
        monkeypatch.setattr(client_module, "Session", node.session)
        monkeypatch.setenv("AQUA_SOCKET", str(directory / "aqua.sock"))
        failed = fork_while(stops, story.use, story.child_is_free)
    assert failed == {}
    assert stops.faults == []
    assert len(stops.seen) > 300


class Sessions:
    """The same of a session alone: a real one, with a daemon that is a process."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self.session: Linked | None = None

    def use(self) -> None:
        # Stops at line after line are no fault of the daemon's.
        patient = replace(
            self._settings, connect_seconds=ON_OTHERS_SECONDS, call_seconds=ON_OTHERS_SECONDS
        )
        session = self.session = Linked(patient)
        session.start()
        room = session.listener.room
        for _ in range(3):
            grant = session.acquire(4 * MIB, SafetyClass.STORE, seconds=ON_OTHERS_SECONDS)
            assert grant.descriptor is not None
            os.close(grant.descriptor)
            session.release([grant.lease_id], room)
            session.reserve_host(room)
        session.close(seconds=5.0)

    def child_is_free(self) -> bool:
        is_told = True
        if (session := self.session) is not None:
            room = session.listener.room
            is_told = forked_child_is_raised(
                session.start,
                lambda: session.acquire(4 * MIB, SafetyClass.STORE, seconds=1.0),
                lambda: session.release(["a"], room),
                lambda: session.reserve_host(room),
            )
            session.close()
        # Elsewhere: the made-up daemon is one session's.
        anew = Linked(replace(self._settings, socket_path=self._settings.socket_path + "-none"))
        anew.start()
        return is_told and anew.reason in ("no_daemon", "forked")


@pytest.mark.limit(120)
@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("process", [30.0], indirect=True, ids=["a-long-term"])
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.long)])
def test_a_child_forked_anywhere_in_a_session_is_told(settings: ClientSettings, every: int) -> None:
    """While calls go out, descriptors come in and keepalives are sent; no answer is lost."""
    sessions, stops = Sessions(settings), Stops(every)
    failed = fork_while(stops, sessions.use, sessions.child_is_free)
    assert failed == {}
    assert stops.faults == []
    assert sessions.session is not None
    assert sessions.session.listener.story == ["attached"]
