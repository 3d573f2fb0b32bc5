"""What can go wrong around a server, and what is promised then: the rows of the README's table.

Covers how each thing is made to go wrong and what must hold; `test_never_hurt` does it and looks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from tests.limits import (
    no_more_descriptors,
    no_more_descriptors_of,
    no_more_shared_memory_of,
)
from tests.nodes import MIB, Node, environment, read_line, wait_until

AT_ONCE_SECONDS = 0.1  # besides the copy
DEADLINE_SECONDS = 2.0  # AQUA_ACQUIRE_SECONDS
LATE_SECONDS = 0.7
FLOODED_SECONDS = 20.0
NO_ROOM = frozenset({"no_room", "no_host_room", "quota"})  # there is a daemon, and it said no

# A client that opens all the sessions it may, and then says hello and keepalive without end.
FLOOD = """
import itertools, socket, sys
from aqua_client.records import HostRoom
from aqua_client.wire_frames import hello_frame, keepalive_frame
from aqua_protos.framing import encode_frame

room = HostRoom(revision=1, nbytes=0)
hello = encode_frame(hello_frame(home_gpu=None, sub_tenant="", program="flood", version="0",
    session_id=None, uses=(), room=room, figures=None))

def connected():
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(0.0)
    try:
        link.connect(sys.argv[1])
        link.send(hello)
    except OSError:
        pass
    return link

links = [connected() for _ in range(100)]
print("flooding", flush=True)
for number in itertools.count():
    at = number % len(links)
    try:
        links[at].send(encode_frame(keepalive_frame(number, (), room, None)))
    except BlockingIOError:
        continue
    except OSError:
        links[at].close()
        links[at] = connected()
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that goes wrong."""

    what: str  # as the README says it
    fault: Callable[[Node], AbstractContextManager[None]]
    tiers: tuple[str, ...] = ("host",)  # where an offload's bytes may go; none: it raises
    reasons: tuple[str, ...]  # of what is not on a peer
    first_seconds: float = AT_ONCE_SECONDS  # the others are at once
    loses: bool = False  # what was parked
    quota_bytes: int = 192 * MIB  # all of the node
    host_pool_bytes: int = 192 * MIB
    has_daemon: bool = True
    heals: bool = True

    @property
    def error(self) -> str:
        """What an offload raises with `fallback="error"`, where its bytes would not go to a peer."""
        if not self.reasons:
            return ""
        return "InsufficientMemory" if NO_ROOM.issuperset(self.reasons) else "BrokerUnreachable"

    def cells(self) -> list[str]:
        """The row as it stands in the README."""
        reasons = ", ".join(f"`{reason}`" for reason in self.reasons) or "none"
        at_most = f"{self.first_seconds:g} s"
        if self.first_seconds > AT_ONCE_SECONDS and self.reasons:
            at_most += f" once, then {AT_ONCE_SECONDS:g} s"
        outcome = ", then ".join(self.tiers) or "`InsufficientMemory`"
        error = f"`{self.error}`" if self.error else "none"
        fetch = "`LeaseLost`" if self.loses else "works"
        return [self.what, outcome, at_most, reasons, error, fetch]


@contextmanager
def nothing(_node: Node) -> Iterator[None]:
    """What the row's flags, or the lack of a daemon, have done already."""
    yield


@contextmanager
def killed(node: Node) -> Iterator[None]:
    node.kill_daemon()
    yield
    node.start_daemon()


@contextmanager
def restarted(node: Node) -> Iterator[None]:
    assert node.terminate_daemon() == 0
    yield
    node.start_daemon()


@contextmanager
def stopped(node: Node) -> Iterator[None]:
    node.stop_daemon()
    try:
        yield
    finally:
        node.continue_daemon()


@contextmanager
def answering_late(node: Node) -> Iterator[None]:
    node.stop_daemon()
    going_on = threading.Timer(LATE_SECONDS, node.continue_daemon)
    going_on.start()
    yield
    going_on.join()


@contextmanager
def keeper_killed(node: Node) -> Iterator[None]:
    node.kill_keeper()
    yield


@contextmanager
def keeper_stopped(node: Node) -> Iterator[None]:
    pid = node.keeper_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def flooded(node: Node) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-c", FLOOD, f"{node.socket}.presence"],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert read_line(process.stdout, seconds=FLOODED_SECONDS) == "flooding\n"
        wait_until(lambda: node.scrape()["aqua_sessions"] > 10, what="sessions are opened")
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


ROWS = (
    Row(what="no daemon", fault=nothing, reasons=("no_daemon",), has_daemon=False, heals=False),
    Row(what="daemon killed", fault=killed, reasons=("unavailable", "lost", "no_daemon")),
    Row(
        what="daemon restarted",
        fault=restarted,
        reasons=("restarting", "unavailable", "lost", "no_daemon"),
    ),
    Row(
        what="daemon stopped (SIGSTOP)",
        fault=stopped,
        reasons=("timeout", "breaker", "silent"),
        first_seconds=DEADLINE_SECONDS,
    ),
    Row(
        what="daemon answers late",
        fault=answering_late,
        tiers=("peer",),
        reasons=(),
        first_seconds=DEADLINE_SECONDS,
    ),
    Row(
        what="quota used up",
        fault=nothing,
        reasons=("quota",),
        quota_bytes=4 * MIB,
        heals=False,
    ),
    Row(
        what="host room used up",
        fault=nothing,
        tiers=(),
        reasons=("no_host_room",),
        host_pool_bytes=4 * MIB,
        heals=False,
    ),
    Row(
        what="no descriptor left in the server",
        fault=lambda _node: no_more_descriptors(),
        reasons=("no_descriptors",),
    ),
    Row(
        what="no descriptor left in the daemon",
        fault=lambda node: no_more_descriptors_of(node.pid),
        reasons=("no_room",),
    ),
    Row(
        what="no descriptor left in the keeper",
        fault=lambda node: no_more_descriptors_of(node.keeper_pid()),
        reasons=("no_room",),
    ),
    Row(
        what="shared memory full",
        fault=lambda node: no_more_shared_memory_of(node.keeper_pid()),
        reasons=("no_room",),
    ),
    Row(
        what="keeper killed",
        fault=keeper_killed,
        tiers=("host", "peer"),
        reasons=("no_room",),
        loses=True,
    ),
    Row(
        what="keeper stopped (SIGSTOP)",
        fault=keeper_stopped,
        reasons=("timeout", "breaker"),
        first_seconds=DEADLINE_SECONDS,
    ),
    Row(
        what="presence flooded by another client",
        fault=flooded,
        tiers=("host", "peer"),
        reasons=("timeout", "breaker"),
        first_seconds=DEADLINE_SECONDS,
    ),
)
