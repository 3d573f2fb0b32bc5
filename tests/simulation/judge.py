"""Who is told what a client really did, before the daemon can know."""

from __future__ import annotations

from typing import Protocol

from aqua_daemon.core.errors import BrokerError
from aqua_daemon.core.model import Lease, LeaseId, SessionId
from tests.simulation.truth import Process, Slab


class Violation(AssertionError):
    """A promise was broken."""


def require(holds: bool, text: str, *values: object) -> None:  # noqa: FBT001 - one claim
    """Stop the run unless a promise holds; *text* has a `{}` for each of *values*."""
    if not holds:
        raise Violation(text.format(*values))


class Judge(Protocol):
    """What clients tell of themselves; each verb may raise `Violation`."""

    def mapped(self, process: Process, lease: Lease, slab: Slab | None) -> None: ...

    def claimed(self, lease_ids: tuple[LeaseId, ...]) -> None: ...

    def left(self, session_id: SessionId) -> None: ...

    def told_gone(self, lease_id: LeaseId, slab: Slab, how: str) -> None: ...

    def wrongly_refused(self, event: object, error: BrokerError) -> None: ...
