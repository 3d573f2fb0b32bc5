"""What the broker remembers, and one turn of it: the handling of one event.

`Books` is everything that outlives an event. A `Turn` is what the rules work with while they handle
one: the books, the time, and the instructions that come of it. All moves of a slab go through it,
so that none happens beside the life-cycle table or without being told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Final

from aqua_daemon.core.deadlines import Deadlines
from aqua_daemon.core.errors import InvalidRequest, StaleRequest
from aqua_daemon.core.instructions import Answer, Instruction, NoteMove
from aqua_daemon.core.ledger import Ledger
from aqua_daemon.core.lifecycle import Move, next_state
from aqua_daemon.core.limits import Limits, Quota
from aqua_daemon.core.link_figures import LinkOutcome
from aqua_daemon.core.model import (
    ALLOCATING,
    LEASED,
    LOST,
    BrokerSettings,
    GpuPair,
    GpuUuid,
    Lease,
    LeaseId,
    LeaseState,
    ProcessIdentity,
    RequestId,
    Revocation,
    Session,
    SessionId,
    SlabTag,
    TenantName,
    owner_of,
)
from aqua_daemon.core.scores import LinkScores
from aqua_daemon.core.sizes import REMEMBERED_ENDED, REMEMBERED_REQUESTS

_SPARED: Final = Move.SPARED
_NO_LIMITS = Limits(nbytes=2**62, leases=2**62, sessions=2**62)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaim:
    """A producer's request for its memory that has not been answered yet."""

    session_id: SessionId
    request_id: RequestId
    gpu: GpuUuid
    asked_bytes: int
    revoked_bytes: int
    freed_bytes: int
    outstanding: frozenset[LeaseId]  # what it waits for
    started_at: float
    ends_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What a session could not get."""

    nbytes: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """An admin's request to measure links that has not been answered yet."""

    session_id: SessionId
    request_id: RequestId
    pairs: tuple[GpuPair, ...]
    outcomes: dict[GpuPair, LinkOutcome]  # of those that have ended
    ends_at: float


@dataclass(slots=True, kw_only=True)
class Books:
    """All that the broker knows."""

    settings: BrokerSettings
    ledger: Ledger
    started_at: float
    is_restarting: bool = True
    ticked_at: float | None = None
    awaited: set[SessionId] = field(default_factory=set)  # adopted, and not seen since
    ended: dict[str, None] = field(default_factory=dict)  # ids that may not come back
    over: dict[SessionId, ProcessIdentity] = field(default_factory=dict)  # left, or proved gone
    unseen: dict[LeaseId, None] = field(default_factory=dict)  # ended before anybody had a handle
    lease_timers: Deadlines[LeaseId] = field(default_factory=Deadlines)
    session_timers: Deadlines[SessionId] = field(default_factory=Deadlines)
    reclaim_timers: Deadlines[RequestId] = field(default_factory=Deadlines)
    reclaims: list[Reclaim] = field(default_factory=list)
    wants: dict[SessionId, Want] = field(default_factory=dict)
    shares: dict[TenantName, int] | None = None  # None: to be worked out when asked for
    rebalanced_at: float = -math.inf
    quotas: dict[TenantName, Quota] = field(default_factory=dict)  # those that were ever set
    scores: LinkScores = field(default_factory=LinkScores)
    probe: Probe | None = None  # under way
    default_limits: Limits = field(init=False)
    violations: int = 0
    known_faults: set[tuple[str, GpuUuid | None, LeaseId | None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.default_limits = Limits(
            nbytes=self.settings.tenant_quota_bytes,
            leases=self.settings.tenant_quota_leases,
            sessions=self.settings.tenant_quota_sessions,
        )

    @property
    def grace_ends_at(self) -> float:
        """When a new broker stops waiting for keepers and for the holders of adopted slabs."""
        return self.started_at + self.settings.restart_grace_seconds

    @property
    def has_heard_all(self) -> bool:
        """Whether each keeper of the node has told what it holds."""
        return all(self.ledger.gpus[gpu].was_heard for gpu in self.settings.gpus)

    def limits_over(self, tenant: TenantName) -> Iterator[tuple[TenantName, Limits]]:
        """Whose quotas count what *tenant* holds, and how much: its tenant's, and its own."""
        owner = owner_of(tenant)
        quota = self.quotas.get(owner)
        yield owner, self.default_limits if quota is None else quota.over(self.default_limits)
        if tenant != owner and tenant in self.quotas:
            yield tenant, self.quotas[tenant].over(_NO_LIMITS)

    def weight_of(self, tenant: TenantName) -> float:
        """How much of what is short it gets, beside others of weight 1."""
        quota = self.quotas.get(tenant)
        return 1.0 if quota is None or quota.weight is None else quota.weight

    def priority_of(self, tenant: TenantName) -> int:
        """Its own, or its tenant's; who has less is asked first."""
        for name in (tenant, owner_of(tenant)):
            quota = self.quotas.get(name)
            if quota is not None and quota.priority is not None:
                return quota.priority
        return 0

    def excuse(self, tenant: TenantName) -> None:
        """What *tenant* holds now may stay, whatever the quotas over it are."""
        for name, _limits in self.limits_over(tenant):
            self.ledger.quota_account(name).excuse()

    def remember_ended(self, ended_id: str) -> None:
        """Keep an id from coming back."""
        self.ended[ended_id] = None
        if len(self.ended) > REMEMBERED_ENDED:
            del self.ended[next(iter(self.ended))]

    def remember_over(self, session: Session) -> None:
        """Note that nobody can touch what a session held, should a keeper turn out to hold it."""
        self.over[session.session_id] = session.process
        if len(self.over) > REMEMBERED_ENDED:
            del self.over[next(iter(self.over))]

    def is_over(self, tag: SlabTag) -> bool:
        """Whether the holder of a slab left or was proved gone: the process, not only the id."""
        return self.over.get(tag.session_id) == tag.holder

    def remember_unseen(self, lease_id: LeaseId) -> None:
        """Note that nobody can hold the lease, should a keeper turn out to have made its slab."""
        self.unseen[lease_id] = None
        if len(self.unseen) > REMEMBERED_ENDED:
            del self.unseen[next(iter(self.unseen))]


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
