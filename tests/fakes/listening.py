"""A listener of sessions that remembers what it was told."""

from __future__ import annotations

from collections.abc import Sequence

from aqua_client.records import HostRoom, LeaseUse, RevokeNotice


class Recorder:
    """Implements SessionListener; a test sets `uses` and `room`, and reads the rest."""

    def __init__(self) -> None:
        self.uses: list[LeaseUse] = []
        self.room = HostRoom(revision=1, nbytes=0)
        self.revokes: list[RevokeNotice] = []
        self.ended: list[str] = []
        self.lost: list[tuple[str, str]] = []
        self.story: list[str] = []  # "attached", or why detached
        self.fails = False

    def revoked(self, notice: RevokeNotice) -> None:
        if self.fails:
            msg = "a fault of the listener"
            raise RuntimeError(msg)
        self.revokes.append(notice)

    def leases_ended(self, lease_ids: Sequence[str]) -> None:
        self.ended += lease_ids

    def leases_lost(self, lease_ids: Sequence[str], reason: str) -> None:
        self.lost += [(lease_id, reason) for lease_id in lease_ids]

    def attached(self) -> None:
        self.story.append("attached")

    def detached(self, reason: str) -> None:
        self.story.append(reason)

    def lease_uses(self) -> Sequence[LeaseUse]:
        return tuple(self.uses)

    def host_room(self) -> HostRoom:
        return self.room
