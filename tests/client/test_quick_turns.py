"""While leases are taken back the interpreter goes round quickly, and as before otherwise."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator

import pytest
import torch
from aqua_protos.framing import send_frame

from aqua_client import moving
from aqua_client.link import Waker
from aqua_client.quick_turns import QUICK_SECONDS, QUICK_TURNS
from aqua_client.reading import Reading
from aqua_client.worker import Worker
from tests.client.pagers import paging, park, random_bytes, wait_acknowledged
from tests.fakes.session import FakeNode
from tests.nodes import wait_until

OWN_SECONDS = 0.004
QUICK = pytest.approx(QUICK_SECONDS, abs=1e-6)
OWN = pytest.approx(OWN_SECONDS, abs=1e-6)


@pytest.fixture(autouse=True)
def _own_interval() -> Iterator[None]:
    """A program's own."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(OWN_SECONDS)
    yield
    sys.setswitchinterval(before)


def test_turns_are_quick_as_long_as_anybody_wants_them() -> None:
    """Two clients of one process may do so at the same time; an error ends it too."""
    with QUICK_TURNS.wanted():
        with pytest.raises(ZeroDivisionError), QUICK_TURNS.wanted():
            _ = 1 // 0
        assert sys.getswitchinterval() == QUICK
    assert sys.getswitchinterval() == OWN


def test_what_the_program_sets_meanwhile_stays() -> None:
    """It is the program's to say."""
    with QUICK_TURNS.wanted():
        sys.setswitchinterval(0.001)
    assert sys.getswitchinterval() == pytest.approx(0.001, abs=1e-6)


def test_a_program_with_turns_as_quick_keeps_them() -> None:
    """They are not made slower, neither meanwhile nor afterwards."""
    sys.setswitchinterval(QUICK_SECONDS / 2)
    with QUICK_TURNS.wanted():
        assert sys.getswitchinterval() < QUICK_SECONDS
    assert sys.getswitchinterval() < QUICK_SECONDS


def test_a_forked_child_has_its_programs_interval() -> None:
    """Whoever wanted them, or held the lock just then, is not there."""
    with QUICK_TURNS.wanted(), QUICK_TURNS._lock:
        child = os.fork()
        if not child:
            found = sys.getswitchinterval() == OWN
            with QUICK_TURNS.wanted():
                found = found and sys.getswitchinterval() == QUICK
            os._exit(not (found and sys.getswitchinterval() == OWN))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_revoke_is_such_a_time_before_it_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's thread would not have its first turn for seconds."""
    node, seen, look = FakeNode(), list[float](), Worker._fence_idle

    def watched(worker: Worker) -> None:  # with each look
        if any(slab.is_revoked for slab in worker._tiers.slabs.values()):
            seen.append(sys.getswitchinterval())
        look(worker)

    monkeypatch.setattr(Worker, "_fence_idle", watched)
    with paging(node) as pager:
        park(pager, random_bytes(2**20))
        wait_acknowledged(node, node.revoke("SHM-1"))
        wait_until(lambda: sys.getswitchinterval() == OWN, what="turns are the program's own")
    assert seen[:1] == [QUICK]
    node.revoke("SHM-1", ["0" * 32])  # nobody is there to serve it
    assert sys.getswitchinterval() == OWN


def test_what_comes_is_read_in_such_a_time() -> None:
    """It may be a revoke."""
    daemon, ours = socket.socketpair()
    seen: list[float] = []

    def hear(_: bytes) -> bool:
        seen.append(sys.getswitchinterval())
        return False

    with (
        daemon,
        contextlib.closing(Waker()) as waker,
        contextlib.closing(Reading(ours, waker, hear)) as reading,
    ):
        send_frame(daemon, b"revoke")
        assert reading.next_payload(deadline=time.monotonic() + 60.0) == b"revoke"
    assert seen == [QUICK]
    assert sys.getswitchinterval() == OWN


def test_a_revoke_is_such_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """From its first copy to its acknowledgement; then it is over."""
    node, seen, copy = FakeNode(), list[float](), moving.copy_pieces

    def watched(*arguments: object) -> None:
        seen.append(sys.getswitchinterval())
        copy(*arguments)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(moving, "copy_pieces", watched)
    tensor = random_bytes(2**20)
    with paging(node) as pager:
        handle = park(pager, tensor)
        assert sys.getswitchinterval() == OWN
        wait_acknowledged(node, node.revoke("SHM-1"))
        assert torch.equal(handle.fetch(), tensor)
    assert seen
    assert seen == [QUICK] * len(seen)
    wait_until(lambda: sys.getswitchinterval() == OWN, what="turns are the program's own")
