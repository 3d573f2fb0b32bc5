"""Who is told how the session stands, and what the daemon says: what `presence` knows of the others.

Does not cover what they do about it: that is `news`' and `calls`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aqua_client.framed_calls import Ask
from aqua_client.records import CallAnswer, HostRoom, LeaseUse, RevokeNotice, Welcome


class SessionListener(Protocol):
    """Who is told what the daemon says. Called on the session's thread: return at once."""

    def revoked(self, notice: RevokeNotice) -> None:
        """Evacuate the leases, then `acknowledge` them; unknown ones at once. May be repeated."""

    def leases_ended(self, lease_ids: Sequence[str]) -> None:
        """The daemon does not know these: evacuate, then close. May be repeated."""

    def leases_lost(self, lease_ids: Sequence[str], reason: str) -> None:
        """What these hold is gone."""

    def attached(self) -> None:
        """Attached, for the first time or again: leases may be asked for."""

    def detached(self, reason: str) -> None:
        """Not attached any more. Leases stay readable; `fetch` and evacuation go on."""

    def lease_uses(self) -> Sequence[LeaseUse]:
        """Every lease that the client knows, for keepalive and re-attach."""

    def host_room(self) -> HostRoom:
        """The host memory held for `store` data now."""


class Gate(Protocol):
    """What calls pass through: opened by each attach, shut by each detach."""

    def open(self, token: bytes, ask: Ask | None = None) -> None:
        """Calls may go out: with this token, and by *ask* where the daemon takes them as frames."""

    def heard(self, answer: CallAnswer) -> None:
        """One that went out by *ask* has an answer."""

    def shut(self, reason: str) -> None:
        """Calls fail at once; those that are out are given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the session stands. Replaced as a whole, so that readers need no lock."""

    attached: bool = False
    reason: str = "starting"  # "" while attached
    welcome: Welcome | None = None  # the last one
