"""Accepts connections on the running loop, a few at once; looks away while descriptors are out.

Does not cover who may come, nor what is said then: that is `presence`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

_AT_ONCE = 16  # then the loop sees to others
_OUT_OF_DESCRIPTORS_PAUSE_SECONDS = 0.1

logger = logging.getLogger("aqua.presence")


class Acceptor:
    """Owns a listener, which is bound and listens."""

    def __init__(self, listener: socket.socket, admit: Callable[[socket.socket], None]) -> None:
        """*admit* gets each connection, and owns it."""
        self._listener = listener
        self._admit = admit
        self._is_over = False

    def start(self) -> None:
        """Begin; to be called on the running loop."""
        self._listener.settimeout(0)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def stop(self) -> None:
        """Take nobody any more; who connects waits for the next daemon, or for `close`."""
        self._is_over = True
        asyncio.get_running_loop().remove_reader(self._listener)

    def close(self) -> None:
        """Stop, and close the listener. May be called twice."""
        if self._listener.fileno() >= 0:
            self.stop()
            self._listener.close()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # it stays readable
                logger.warning("cannot accept a client: %s", error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._listener)
                loop.call_later(_OUT_OF_DESCRIPTORS_PAUSE_SECONDS, self._accept_again)
                return
            self._admit(connection)

    def _accept_again(self) -> None:
        if not self._is_over:
            self.start()
