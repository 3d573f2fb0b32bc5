"""One turn of the broker: the handling of one event.

A `Turn` is what the rules work with while they handle one: the books, the time, and the instructions
that come of it. All moves of a slab go through it, so that none happens beside the life-cycle table
or without being told.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Final

from aqua_daemon.core.books import Books
from aqua_daemon.core.errors import InvalidRequest, NotPermitted, StaleRequest
from aqua_daemon.core.instructions import Answer, Instruction, NoteMove
from aqua_daemon.core.lifecycle import Move, next_state
from aqua_daemon.core.model import (
    ALLOCATING,
    LEASED,
    LOST,
    GpuUuid,
    Lease,
    LeaseId,
    LeaseState,
    RequestId,
    Revocation,
    Session,
    SessionId,
)
from aqua_daemon.core.sizes import REMEMBERED_REQUESTS

_SPARED: Final = Move.SPARED


class Turn:
    """The handling of one event."""

    __slots__ = ("books", "instructions", "ledger", "now", "struck", "touched", "touched_gpus")

    def __init__(self, books: Books, now: float) -> None:
        self.books = books
        self.ledger = books.ledger
        self.now = now
        self.instructions: list[Instruction] = []
        self.touched: dict[LeaseId, None] = {}
        self.touched_gpus: dict[GpuUuid, None] = {}
        self.struck: list[Lease] = []  # gone, or lost: their bytes are nobody's

    def emit(self, instruction: Instruction) -> None:
        """Add to what must be done about the event."""
        self.instructions.append(instruction)

    def living_admin(self, session_id: SessionId, deed: str) -> Session:
        """The session, unless it has ended, or *deed* is not for it.

        Raises:
            UnknownSession: it has ended.
            NotPermitted: only admins may do that.
        """
        session = self.ledger.living_session(session_id)
        if not session.is_admin:
            msg = f"only an admin may {deed}: ask {self.books.settings.whom_to_ask}"
            raise NotPermitted(msg)
        return session

    # Slabs

    def enter(self, lease: Lease, move: Move) -> None:
        """Put a new slab into the books; *lease* is as *move* makes it."""
        after = next_state(None, move)
        self.ledger.enter(lease)
        self.touched[lease.lease_id] = None
        self._note(None, after, lease, seconds=0.0, move=move)

    def move(
        self,
        lease: Lease,
        move: Move,
        *,
        revocation: Revocation | None = None,
    ) -> Lease:
        """Move a slab; return its record, or as it was when it is gone."""
        after = next_state(lease.state, move)
        seconds, is_spared = self.now - lease.since, move is _SPARED
        if after is None:
            self.ledger.strike(lease.lease_id)
            self.books.remember_ended(lease.lease_id)
            if lease.state is ALLOCATING:
                self.books.remember_unseen(lease.lease_id)
            self.struck.append(lease)
            moved = lease
        else:
            moved = _changed(
                lease,
                state=after,
                since=self.now,
                revocation=None if is_spared else revocation or lease.revocation,
            )
            self.ledger.replace(moved)
            self.touched[lease.lease_id] = None
            if after is LEASED:
                self.ledger.named_at[lease.lease_id] = self.now
            if after is LOST:
                self.struck.append(moved)
        spared = lease.revocation if is_spared else None
        self._note(lease.state, after, moved, seconds=seconds, move=move, spared=spared)
        return moved

    def revise(self, lease: Lease, revocation: Revocation) -> Lease:
        """Change the terms of a revoke under way, or mark a slab that is still being made."""
        revised = _changed(
            lease,
            state=lease.state,
            since=lease.since,
            revocation=revocation,
        )
        self.ledger.replace(revised)
        self.touched[lease.lease_id] = None
        return revised

    # Requests

    def repeated(self, session: Session, request_id: RequestId) -> bool:
        """Whether the request was seen before; if so its answer is given again, once there is one.

        Raises:
            InvalidRequest: the id was used for a lease.
        """
        answers = self.ledger.session_accounts[session.session_id].answers
        if request_id not in answers:
            return False
        answer = answers[request_id]
        if isinstance(answer, str):
            msg = (
                f"request id {request_id} was used for lease {answer}: make a new id for each call"
            )
            raise InvalidRequest(msg)
        if answer is not None:
            self.instructions.append(answer)
        return True

    def await_answer(self, session_id: SessionId, request_id: RequestId) -> None:
        """Note that the request has had its effect; its answer is to come."""
        self._remember(session_id, request_id, None)

    def promise(self, lease: Lease) -> None:
        """Note that the request of *lease* is answered by that lease."""
        self._remember(lease.session_id, lease.request_id, lease.lease_id)

    def answer(self, answer: Answer) -> None:
        """Answer a request, and every repeat of it."""
        if answer.session_id in self.ledger.session_accounts:
            self._remember(answer.session_id, answer.request_id, answer)
        self.instructions.append(answer)

    def promised_lease(self, session: Session, request_id: RequestId) -> LeaseId | Answer | None:
        """What an earlier request for a lease with this id got; None if there was none.

        Raises:
            StaleRequest: the id was used for another call that has not been answered yet.
        """
        answers = self.ledger.session_accounts[session.session_id].answers
        if request_id not in answers:
            return None
        answer = answers[request_id]
        if answer is None:
            msg = f"request id {request_id} is in use by another call: make a new id for each call"
            raise StaleRequest(msg)
        return answer

    def _note(
        self,
        before: LeaseState | None,
        after: LeaseState | None,
        lease: Lease,
        *,
        seconds: float,
        move: Move,
        spared: Revocation | None = None,
    ) -> None:
        session = self.ledger.sessions.get(lease.session_id)
        self.instructions.append(
            NoteMove(
                before=before,
                after=after,
                lease=lease,
                seconds=seconds,
                why=move.value,
                holder=None if session is None else session.process,
                spared=spared,
            )
        )

    def _remember(
        self, session_id: SessionId, request_id: RequestId, answer: LeaseId | Answer | None
    ) -> None:
        answers = self.ledger.session_accounts[session_id].answers
        answers[request_id] = answer
        if len(answers) > REMEMBERED_REQUESTS:
            del answers[next(iter(answers))]


def _changed(
    lease: Lease, *, state: LeaseState, since: float, revocation: Revocation | None
) -> Lease:
    # Made by its slots, one by one: each move makes a record, and a frozen record's own way to be
    # made takes two and a half times as long.
    changed = object.__new__(Lease)
    _set_lease_id(changed, lease.lease_id)
    _set_session_id(changed, lease.session_id)
    _set_tenant(changed, lease.tenant)
    _set_lender(changed, lease.lender)
    _set_borrower(changed, lease.borrower)
    _set_nbytes(changed, lease.nbytes)
    _set_safety_class(changed, lease.safety_class)
    _set_request_id(changed, lease.request_id)
    _set_state(changed, state)
    _set_since(changed, since)
    _set_revocation(changed, revocation)
    return changed


(
    _set_lease_id,
    _set_session_id,
    _set_tenant,
    _set_lender,
    _set_borrower,
    _set_nbytes,
    _set_safety_class,
    _set_request_id,
    _set_state,
    _set_since,
    _set_revocation,
) = (getattr(Lease, one.name).__set__ for one in fields(Lease))
