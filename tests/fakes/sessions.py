"""Presence links that remember what was to be said."""

from __future__ import annotations

from collections.abc import Callable

from aqua_daemon.core.events import Event, LossTold
from aqua_daemon.core.instructions import SendRevoke, TellLost
from aqua_daemon.core.model import SessionId


class FakeSessions:
    """Implements ports.Sessions."""

    def __init__(self, submit: Callable[[Event], None]) -> None:
        self.revokes: list[tuple[SendRevoke, float]] = []  # each with the seconds given
        self.losses: list[TellLost] = []
        self.forgotten: list[SessionId] = []
        self._submit = submit

    def send_revoke(self, order: SendRevoke, *, seconds: float) -> None:
        self.revokes.append((order, seconds))

    def tell_lost(self, order: TellLost) -> None:
        self.losses.append(order)
        self._submit(LossTold(lease_ids=order.lease_ids))

    def forget(self, session_id: SessionId) -> None:
        self.forgotten.append(session_id)
