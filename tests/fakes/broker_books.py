"""What the daemon in miniature knows of its clients, and how it pushes to them."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field

from aqua_protos import presence_pb2
from aqua_protos.framing import send_frame

MIB = 2**20
CANARY = bytes(range(64))


@dataclass
class Session:
    """What the fake knows of one client."""

    session_id: str
    token: bytes
    connection: socket.socket
    sentinel: socket.socket
    leases: set[str] = field(default_factory=set)

    def sentinel_has_ended(self) -> bool:
        """Whether no process holds the client's end any more."""
        self.sentinel.settimeout(0.0)
        try:
            return self.sentinel.recv(1) == b""
        except BlockingIOError:
            return False

    def push(self, frame: presence_pb2.DaemonFrame, *descriptors: int) -> None:
        with suppress(OSError):
            send_frame(self.connection, frame.SerializeToString(), descriptors)

    def push_revoke(self, lease_ids: list[str], *, deadline_seconds: float = 2.0) -> None:
        revoke = presence_pb2.Revoke(
            lender_gpu="SHM-1",
            nbytes=4 * MIB * len(lease_ids),
            reason="reclaimed",
            deadline_seconds=deadline_seconds,
            lease_ids=lease_ids,
        )
        self.push(presence_pb2.DaemonFrame(revoke=revoke))

    def push_lost(self, lease_ids: list[str], reason: str) -> None:
        lost = presence_pb2.LeasesLost(lease_ids=lease_ids, reason=reason)
        self.push(presence_pb2.DaemonFrame(leases_lost=lost))

    def push_restarting(self) -> None:
        frame = presence_pb2.DaemonFrame(restarting=presence_pb2.Restarting())
        self.push(frame)

    def push_descriptor(self, lease_id: str) -> None:
        """A descriptor of a new memfd, for that lease; the fake's own copy is closed."""
        memory = os.memfd_create("slab")
        os.ftruncate(memory, 4 * MIB)
        os.pwrite(memory, CANARY, 0)
        frame = presence_pb2.DaemonFrame()
        frame.slab_descriptor.lease_id = lease_id
        self.push(frame, memory)
        os.close(memory)


@dataclass
class Books:
    """What a daemon's end does not take along."""

    sessions: dict[str, Session] = field(default_factory=dict)

    def close(self) -> None:
        for session in self.sessions.values():
            session.connection.close()
            session.sentinel.close()
