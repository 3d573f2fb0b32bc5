"""The last things that happened, in words, each with the tenant that it is about.

Covers keeping a bounded number of lines, numbering them so that a follower can ask for what came
since, and knowing whose a session is when only its id is said. Does not cover the words (journal)
nor who may read which line (visibility).
"""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass

from aqua_daemon.core.events import Event, SessionOpened, SessionReattached
from aqua_daemon.core.instructions import (
    AnswerQuota,
    ForgetSession,
    Instruction,
    NoteMove,
    NoteRebalance,
)
from aqua_daemon.core.model import SessionId, TenantName

REMEMBERED_LINES = 1000  # minutes of a busy node; 0.3 MB of memory and of a reply
LONGEST_LINE = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One line for people."""

    number: int  # from 1, without a gap
    at: float
    tenant: TenantName | None  # whom it is about; None: the node
    text: str


class Happenings:
    """The last lines, oldest first."""

    def __init__(self, most: int = REMEMBERED_LINES) -> None:
        self.epoch = secrets.token_hex(8)  # of this daemon: the next one numbers anew
        self.last_number = 0
        self._lines: deque[Happening] = deque(maxlen=most)

    def remember(self, text: str, *, at: float, tenant: TenantName | None) -> None:
        """Add a line; the oldest goes when there are too many."""
        self.last_number += 1
        line = Happening(number=self.last_number, at=at, tenant=tenant, text=text[:LONGEST_LINE])
        self._lines.append(line)

    def after(self, number: int) -> tuple[Happening, ...]:
        """What came after line *number* and is still remembered."""
        return tuple(line for line in self._lines if line.number > number)

    def has_forgotten(self, number: int) -> bool:
        """Whether something that came after line *number* is remembered no more."""
        oldest = self._lines[0].number if self._lines else self.last_number + 1
        return number + 1 < oldest


class TenantsOfSessions:
    """Whose each session is, as far as the broker has let it in."""

    def __init__(self) -> None:
        self._tenants: dict[SessionId, TenantName] = {}
        self._newcomer: SessionId | None = None

    def of(self, record: Event | Instruction) -> TenantName | None:
        """The tenant that a record is about; None when it is about the node, or nobody knows."""
        if isinstance(record, NoteMove):
            return record.lease.tenant
        if isinstance(record, AnswerQuota | NoteRebalance):
            return record.tenant
        session_id = getattr(record, "session_id", None)
        known = None if session_id is None else self._tenants.get(session_id)
        if known is None and isinstance(record, SessionOpened | SessionReattached):
            return record.tenant
        return known

    def happened(self, event: Event) -> None:
        """Learn who comes; whoever asks for another's session does not change whose it is."""
        self._newcomer = None
        if not isinstance(event, SessionOpened | SessionReattached):
            return
        if event.session_id not in self._tenants:
            self._tenants[event.session_id] = event.tenant
            self._newcomer = event.session_id

    def refused(self, event: Event) -> None:
        """Forget who was not let in."""
        if self._newcomer is not None and self._newcomer == getattr(event, "session_id", None):
            del self._tenants[self._newcomer]
            self._newcomer = None

    def instructed(self, instruction: Instruction) -> None:
        """Learn of a session that a keeper told of; forget one that is over."""
        match instruction:
            case NoteMove(lease=lease):
                self._tenants.setdefault(lease.session_id, lease.tenant)
            case ForgetSession(session_id=session_id):
                self._tenants.pop(session_id, None)
            case _:
                pass
