"""What the service manager is told: ready, alive, stopping.

Covers systemd's notification datagrams and nothing else of it. Without a manager everything here
does nothing.
"""

from __future__ import annotations

import asyncio
import logging
import socket

_log = logging.getLogger("aqua.service_manager")

_PINGS_PER_PERIOD = 3  # one may come late without the daemon being taken for dead


class ServiceManager:
    """Tells the manager at *address* (a path, or `@` and an abstract name) how the daemon is."""

    def __init__(self, address: str) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def tell(self, state: str) -> None:
        """Send `READY=1` and the like. Never raises, never waits."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(0)
                sender.sendto(state.encode(), self._address)
        except OSError as error:
            _log.warning("the service manager could not be told %s: %s", state, error)

    async def ping(self, *, period_seconds: float | None) -> None:
        """Say that the loop turns, often enough for the watchdog; until cancelled.

        On the loop and not beside it: what has to be proved alive is the loop.
        """
        while period_seconds is not None:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(period_seconds / _PINGS_PER_PERIOD)
