"""What happens when no leased memory is to be had: host memory, loudly, or an error.

Warns once, counts every time, and remembers a refusal for a moment so that a full node does not
cost a call per offload.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings

from aqua_client.errors import AquaError, BrokerUnreachable, InsufficientMemory
from aqua_client.records import OTHER_PROTOCOL, SafetyClass
from aqua_client.settings import ClientSettings, Fallback

# Long against a call (1 ms), short against what frees memory: an owner, or another tenant.
BACK_OFF_SECONDS = 0.25

# What this process can't use it can't use a moment later either, and each slab costs a scrub.
UNUSABLE_SECONDS = 10.0

# Where starting the daemon is not what helps.
_REMEDIES = {
    OTHER_PROTOCOL: "bring this program's aqua_client and the daemon to neighbouring releases"
}

logger = logging.getLogger("aqua")


class AquaWarning(UserWarning):
    """Something works, but not as it should."""


class Shortage(AquaError):
    """No leased memory, for a *reason*. Never leaves the library."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BackOff:
    """Which class was refused lately, and why."""

    def __init__(self) -> None:
        self._refusals: dict[SafetyClass, tuple[float, str]] = {}

    def note(self, safety: SafetyClass, reason: str, *, seconds: float = BACK_OFF_SECONDS) -> None:
        """Leases of this class were refused now."""
        self._refusals[safety] = (time.monotonic() + seconds, reason)

    def reason(self, safety: SafetyClass) -> str:
        """Why there is no point in asking now; empty: there may be."""
        until, reason = self._refusals.get(safety, (0.0, ""))
        return reason if time.monotonic() < until else ""


class FallbackRule:
    """The process's choice, and whether it has been told."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._has_warned = False

    def enter(self, reason: str, *, nbytes: int, peer_free_bytes: int) -> None:
        """Go to host memory because of *reason*.

        Raises:
            BrokerUnreachable: `fallback="error"`, and there is no daemon to ask.
            InsufficientMemory: `fallback="error"`, and the daemon has nothing to lend.
            AquaWarning: the process turns warnings into errors.
        """
        if self._settings.fallback is Fallback.ERROR:
            raise self._refusal(reason, nbytes, peer_free_bytes)
        if self._has_warned:
            return
        self._has_warned = True
        message = (
            f"no leased memory for {nbytes} bytes ({reason}, socket "
            f"{self._settings.socket_path}): using this process's host memory; told once, "
            "counted in aqua_client.stats()"
        )
        if logger.hasHandlers():  # without one it would be on stderr twice
            logger.warning(message)
        warnings.warn(message, AquaWarning, stacklevel=_callers_level())

    def _refusal(self, reason: str, nbytes: int, peer_free_bytes: int) -> AquaError:
        if reason in {"no_room", "no_host_room", "quota"}:
            return InsufficientMemory(
                asked_bytes=nbytes, peer_free_bytes=peer_free_bytes, reason=reason
            )
        return BrokerUnreachable(
            f"no leased memory for {nbytes} bytes ({reason}) at {self._settings.socket_path}, and "
            f'fallback="error": {_REMEDIES.get(reason, "start aqua-daemon")}, or allow host memory '
            "(AQUA_FALLBACK=host)",
            reason=reason,
        )


def _callers_level() -> int:
    """How far up the stack the first caller outside of this library is."""
    level, frame = 1, sys._getframe(1)  # noqa: SLF001 - warnings itself has no other way before 3.12
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("aqua_"):
        level, frame = level + 1, frame.f_back
    return level
