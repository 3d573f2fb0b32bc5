"""A client of a node that borrows whole slabs and maps them: the session, without the pager."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from aqua_client.counters import Counters
from aqua_client.records import Grant, HostRoom, LeaseUse, RevokeNotice, SafetyClass
from aqua_client.session import Session
from aqua_client.settings import ClientSettings
from tests.nodes import Node, wait_until

CALL_SECONDS = 10.0  # a busy test machine is no fault of the node's


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab:
    """One lease and its bytes."""

    grant: Grant
    bytes: mmap.mmap


class Borrower:
    """Holds slabs over restarts of the daemon; notes what it is told."""

    def __init__(self, node: Node, *, home_gpu: str) -> None:
        settings = ClientSettings(
            socket_path=node.socket,
            home_gpu=home_gpu,
            connect_seconds=CALL_SECONDS,
            call_seconds=CALL_SECONDS,
        )
        self.slabs: list[Slab] = []
        self.told: list[str] = []
        self.revokes: list[RevokeNotice] = []
        self._lock = threading.Lock()
        self._room = HostRoom(revision=0, nbytes=0)
        self.session = Session(settings, self, Counters())

    def borrow(self, nbytes: int, safety_class: SafetyClass = SafetyClass.CACHE) -> Slab:
        """A slab, mapped."""
        grant = self.session.acquire(nbytes, safety_class, seconds=CALL_SECONDS)
        assert grant.descriptor is not None
        try:
            slab = Slab(grant=grant, bytes=mmap.mmap(grant.descriptor, grant.nbytes))
        finally:
            os.close(grant.descriptor)
        with self._lock:
            self.slabs.append(slab)
        return slab

    def give_back(self, slab: Slab) -> None:
        """Unmap and release."""
        with self._lock:
            self.slabs.remove(slab)
        slab.bytes.close()
        returned = self.session.release([slab.grant.lease_id], self.host_room())
        assert returned == {slab.grant.lease_id}

    def acknowledge(self, slab: Slab) -> None:
        """Unmap what was revoked and say so."""
        with self._lock:
            self.slabs.remove(slab)
        slab.bytes.close()
        returned = self.session.acknowledge([slab.grant.lease_id], self.host_room())
        assert returned == {slab.grant.lease_id}

    def close(self) -> None:
        for slab in self.slabs:
            slab.bytes.close()
        self.session.close(seconds=CALL_SECONDS)

    def revoked(self, notice: RevokeNotice) -> None:
        self.revokes.append(notice)

    def leases_ended(self, lease_ids: Sequence[str]) -> None:
        self.told.append(f"ended {len(lease_ids)}")

    def leases_lost(self, lease_ids: Sequence[str], reason: str) -> None:
        self.told.append(f"lost {len(lease_ids)} ({reason})")

    def attached(self) -> None:
        self.told.append("attached")

    def detached(self, reason: str) -> None:
        self.told.append(f"detached ({reason})")

    def lease_uses(self) -> Sequence[LeaseUse]:
        with self._lock:
            return [
                LeaseUse(lease_id=slab.grant.lease_id, used_bytes=0, copy_bytes=0, idle_seconds=0.0)
                for slab in self.slabs
            ]

    def host_room(self) -> HostRoom:
        with self._lock:
            self._room = replace(self._room, revision=self._room.revision + 1)
            return self._room


@contextmanager
def borrowing(node: Node, *, home_gpu: str = "SHM-0") -> Iterator[Borrower]:
    """An attached borrower; it says goodbye at the end."""
    borrower = Borrower(node, home_gpu=home_gpu)
    try:
        borrower.session.start()
        wait_until(lambda: borrower.session.attached, what="the borrower is attached")
        yield borrower
    finally:
        borrower.close()
