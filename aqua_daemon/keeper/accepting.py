"""Takes connections from peers that may speak, and stays polite when it can take no more."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable

from aqua_daemon.keeper.peers import Peer, may_speak, peer_of

MOST_CONNECTIONS = 512  # one daemon and the owners' processes; far more than a node has
_ACCEPTS_AT_ONCE = 32

_log = logging.getLogger("aqua.keeper")


class Acceptor:
    """Hands accepted connections on; the rest are closed at once."""

    def __init__(
        self,
        listener: socket.socket,
        on_accepted: Callable[[socket.socket, Peer], None],
        connections: Callable[[], int],
    ) -> None:
        """*connections* tells how many there are now."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._on_accepted = on_accepted
        self._connections = connections
        self._spare = _spare_descriptor()
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Take no more. The listener stays its owner's. May be called twice."""
        self._loop.remove_reader(self._listener)
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                _log.warning("a connection was turned away: %s", error)
                self._turn_away()
                return
            peer = peer_of(connection)
            if may_speak(peer) and self._connections() < MOST_CONNECTIONS:
                self._on_accepted(connection, peer)
            else:
                _log.warning("process %d of uid %d was turned away", peer.pid, peer.uid)
                connection.close()

    def _turn_away(self) -> None:
        # Out of descriptors: the listener would stay readable and the loop spin on it. The spare
        # one makes room to accept and close, so that the peer at least learns of it.
        if self._spare is not None:
            os.close(self._spare)
        try:
            self._listener.accept()[0].close()
        except OSError as error:
            _log.warning("and could not be told: %s", error)
        self._spare = _spare_descriptor()


def _spare_descriptor() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
