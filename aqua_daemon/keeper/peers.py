"""Who is at the other end of a Unix socket, as the kernel says."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_SO_PEERPIDFD = 77  # Linux 6.5 and newer; Python has no name for it yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The process that connected, which is not always the one that sends now."""

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Peer:
    """Read SO_PEERCRED."""
    content = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(content)
    return Peer(pid=pid, uid=uid)


def may_speak(peer: Peer) -> bool:
    """Only this keeper's own user and root."""
    return peer.uid in {os.geteuid(), 0}


def peer_pidfd(connection: socket.socket) -> int:
    """A pidfd of the peer; the caller closes it.

    Raises:
        OSError: the process has ended, or is of a PID namespace that can't be seen from here.
    """
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return os.pidfd_open(peer_of(connection).pid)
