"""A session without a daemon: grants memfd slabs on made-up GPUs, and says what tests tell it to.

    node = FakeNode(gpu_bytes={"SHM-1": 64 * MIB})
    pager = Pager(ClientSettings(...), node.session)
    node.revoke("SHM-1")

It keeps the daemon's rules that matter to a client: room per GPU and of the host pool, unknown
ids, and that whatever is given back has been unmapped.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from aqua_client.counters import Counters
from aqua_client.errors import BrokerUnreachable, Refused
from aqua_client.records import Grant, HostRoom, RevokeNotice, SafetyClass
from aqua_client.session import SessionListener
from aqua_client.settings import ClientSettings

MIB = 2**20
SEALS = 0x2 | 0x4  # F_SEAL_SHRINK, F_SEAL_GROW
F_ADD_SEALS = 1033
LATE_SECONDS = 10.0  # how long an answer may be held down


@dataclass(slots=True)
class FakeLease:
    """A lease as the made-up daemon sees it."""

    lease_id: str
    gpu: str
    nbytes: int
    safety: SafetyClass


@dataclass(slots=True)
class Returned:
    """One call that gave leases back."""

    lease_ids: tuple[str, ...]
    room: HostRoom
    how: str  # "released" or "acknowledged"


@dataclass
class FakeNode:
    """The daemon's side of one session. Tests set its fields at any time."""

    gpu_bytes: dict[str, int] = field(default_factory=lambda: {"SHM-1": 64 * MIB})
    smallest_slab_bytes: int = 4 * MIB
    largest_slab_bytes: int = 32 * MIB
    host_pool_bytes: int = 1024 * MIB
    refusal: str = ""
    refusals: dict[SafetyClass, str] = field(default_factory=dict)  # of one class alone
    unreachable: str = ""
    term_seconds: float = 10.0
    keeper_pid: int = 1
    wrong_canary: bool = False
    leases: dict[str, FakeLease] = field(default_factory=dict)
    returned: list[Returned] = field(default_factory=list)
    still_mapped: list[str] = field(default_factory=list)  # at the moment they were given back
    asked: list[int] = field(default_factory=list)  # bytes of each acquire
    says_room: bool = False  # with a refusal, as a daemon of this release does
    wanted: list[int] = field(default_factory=list)  # and all that it said to want
    revoke_reason: str = "reclaim"
    takes_exchanges: bool = False
    exchange_refusal: str = ""
    exchanged: list[tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=list)
    exchange_answers: Callable[[], None] = lambda: None  # called before each answer
    probes: int = 0  # reservations asked for, answered or not
    room: HostRoom = field(default_factory=lambda: HostRoom(revision=0, nbytes=0))
    # Tests that need an answer to come late hold this down.
    answers: threading.Event = field(default_factory=threading.Event)
    host_answers: threading.Event = field(default_factory=threading.Event)  # to reservations
    late_seconds: float = 0.0  # how long each slab takes

    def __post_init__(self) -> None:
        self.answers.set()
        self.host_answers.set()
        self.lock = threading.Lock()
        self.sessions: list[FakeSession] = []

    def session(
        self, settings: ClientSettings, listener: SessionListener, counters: Counters
    ) -> FakeSession:
        """What a pager is given to make its session with."""
        session = FakeSession(self, settings, listener, counters)
        self.sessions.append(session)
        return session

    @property
    def listener(self) -> SessionListener:
        """Whom the daemon talks to."""
        return self.sessions[-1].listener

    @property
    def acknowledged(self) -> list[str]:
        """Every lease id that was acknowledged, in order."""
        return [
            one for call in self.returned if call.how == "acknowledged" for one in call.lease_ids
        ]

    @property
    def released(self) -> list[str]:
        """Every lease id that was given back unasked, in order."""
        return [one for call in self.returned if call.how == "released" for one in call.lease_ids]

    def ids_on(self, gpu: str) -> tuple[str, ...]:
        """The leases there."""
        with self.lock:
            return tuple(one.lease_id for one in self.leases.values() if one.gpu == gpu)

    def lent_bytes(self, gpu: str) -> int:
        """What is lent there."""
        return sum(one.nbytes for one in tuple(self.leases.values()) if one.gpu == gpu)

    def revoke(
        self, gpu: str, lease_ids: Iterable[str] | None = None, *, seconds: float = 2.0
    ) -> tuple[str, ...]:
        """Ask for leases of a GPU back, all of them unless named, and lend none there any more."""
        self.gpu_bytes[gpu] = 0
        chosen = self.ids_on(gpu) if lease_ids is None else tuple(lease_ids)
        self.listener.revoked(
            RevokeNotice(
                lender_gpu=gpu,
                nbytes=0,
                reason=self.revoke_reason,
                deadline=time.monotonic() + seconds,
                lease_ids=chosen,
            )
        )
        return chosen


class FakeSession:
    """A `Lender` over a `FakeNode`."""

    def __init__(
        self,
        node: FakeNode,
        settings: ClientSettings,
        listener: SessionListener,
        counters: Counters,
    ) -> None:
        self.node = node
        self.settings = settings
        self.listener = listener
        self.counters = counters
        self.is_closed = False

    @property
    def attached(self) -> bool:
        return not self.node.unreachable

    @property
    def reason(self) -> str:
        return self.node.unreachable

    @property
    def tenant(self) -> str:
        return "tests"

    @property
    def term_seconds(self) -> float:
        return self.node.term_seconds

    @property
    def smallest_slab_bytes(self) -> int:
        return self.node.smallest_slab_bytes

    @property
    def largest_slab_bytes(self) -> int:
        return self.node.largest_slab_bytes

    @property
    def takes_exchanges(self) -> bool:
        return self.node.takes_exchanges

    def start(self) -> None:
        if not self.node.unreachable:
            self.listener.attached()

    def acquire(
        self, nbytes: int, safety_class: SafetyClass, *, wanted_bytes: int, seconds: float
    ) -> Grant:
        self._reach()
        node = self.node
        node.asked.append(nbytes)
        node.wanted.append(wanted_bytes)
        with node.lock:
            refusal = node.refusal or node.refusals.get(safety_class, "")
            if refusal:
                raise Refused(reason=refusal)
            gpu = max(node.gpu_bytes, key=lambda one: node.gpu_bytes[one] - node.lent_bytes(one))
            room = node.gpu_bytes[gpu] - node.lent_bytes(gpu)
            if room < nbytes:
                raise Refused(reason="no_room", largest_bytes=room if node.says_room else None)
            lease = FakeLease(uuid4().hex, gpu, nbytes, safety_class)
            node.leases[lease.lease_id] = lease
        threading.Event().wait(min(seconds, node.late_seconds))
        if seconds < node.late_seconds or not node.answers.wait(seconds):
            raise BrokerUnreachable(reason="timeout")
        canary = os.urandom(64)
        return Grant(
            lease_id=lease.lease_id,
            lender_gpu=gpu,
            nbytes=nbytes,
            safety_class=safety_class,
            keeper_pid=node.keeper_pid,
            canary=os.urandom(64) if node.wrong_canary else canary,
            descriptor=slab_descriptor(lease.lease_id, nbytes, canary),
            cuda_ipc=b"",
        )

    def release(
        self, lease_ids: Sequence[str], host_room: HostRoom, *, seconds: float | None = None
    ) -> set[str]:
        assert seconds is None or seconds > 0
        return self._take_back(lease_ids, host_room, "released")

    def acknowledge(
        self, lease_ids: Sequence[str], host_room: HostRoom, *, seconds: float | None = None
    ) -> set[str]:
        assert seconds is None or seconds > 0
        return self._take_back(lease_ids, host_room, "acknowledged")

    def tell_returned(
        self,
        host_room: HostRoom,
        *,
        acknowledged: Sequence[str] = (),
        released: Sequence[str] = (),
    ) -> None:
        if acknowledged:
            self._take_back(acknowledged, host_room, "acknowledged")
        if released:
            self._take_back(released, host_room, "released")

    def exchange(self, kept: Sequence[str], given: Sequence[str], *, seconds: float) -> None:
        assert seconds > 0
        self._reach()
        self.node.exchanged.append((tuple(kept), tuple(given)))
        self.node.exchange_answers()
        if self.node.exchange_refusal:
            raise Refused(reason=self.node.exchange_refusal)

    def reserve_host(self, host_room: HostRoom, *, seconds: float | None = None) -> HostRoom:
        assert seconds is None or seconds > 0
        self.node.probes += 1
        self._reach()
        node = self.node
        node.host_answers.wait(seconds or LATE_SECONDS)
        with node.lock:
            if host_room.revision > node.room.revision:
                if host_room.nbytes > max(node.room.nbytes, node.host_pool_bytes):
                    raise Refused(reason="no_host_room")
                node.room = host_room
            return node.room

    def close(self, *, seconds: float = 0.2) -> None:
        assert seconds > 0
        self.is_closed = True
        self.node.still_mapped += [one for one in tuple(self.node.leases) if is_mapped(one)]
        self.node.leases.clear()

    def _take_back(self, lease_ids: Sequence[str], room: HostRoom, how: str) -> set[str]:
        self._reach()
        node = self.node
        with node.lock:
            node.still_mapped += [one for one in lease_ids if is_mapped(one)]
            if room.revision > node.room.revision:
                node.room = room
            known = {one for one in lease_ids if node.leases.pop(one, None) is not None}
            # Last: tests wait for it, and then look at the rest.
            node.returned.append(Returned(tuple(lease_ids), room, how))
            return known

    def _reach(self) -> None:
        if self.node.unreachable:
            raise BrokerUnreachable(reason=self.node.unreachable)


def slab_descriptor(lease_id: str, nbytes: int, canary: bytes) -> int:
    """A sealed memfd that begins with the canary, named after the lease."""
    descriptor = os.memfd_create(f"slab-{lease_id}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, nbytes)
    os.pwrite(descriptor, canary, 0)
    fcntl.fcntl(descriptor, F_ADD_SEALS, SEALS)
    return descriptor


def is_mapped(lease_id: str) -> bool:
    """Whether this process maps the slab of a lease."""
    return f"slab-{lease_id}" in Path("/proc/self/maps").read_text()
