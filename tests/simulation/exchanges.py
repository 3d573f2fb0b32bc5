"""What was promised of exchanges: for no byte less, none later, and only what its holder named."""

from __future__ import annotations

from aqua_daemon.core.errors import BrokerError
from aqua_daemon.core.events import Event, ExchangeOffered
from aqua_daemon.core.instructions import AnswerExchange
from aqua_daemon.core.model import Lease, LeaseState, RequestId, SessionId
from tests.simulation.books import Books
from tests.simulation.judge import require
from tests.simulation.stage import Stage

_SLACK = 1e-6


class Exchanges:
    """The exchange that a daemon handles just now, if it does."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._offer: ExchangeOffered | None = None
        self._spared: list[tuple[Lease, float]] = []  # each with the deadline that it had
        self._taken: list[Lease] = []
        self._answers: dict[tuple[SessionId, RequestId], AnswerExchange] = {}

    def heard(self, event: Event) -> None:
        """What was handled before is over; this is handled next."""
        self._settle()
        self._offer = event if isinstance(event, ExchangeOffered) else None
        if self._offer is not None:
            self._stage.count("exchanges offered")

    def refused(self, error: BrokerError) -> None:
        """The broker raised: what was asked back has to come."""
        self._stage.count(f"exchanges refused: {error.reason}")
        self._offer = None

    def moved(
        self, before: LeaseState | None, after: LeaseState | None, lease: Lease, books: Books
    ) -> None:
        """A lease moves, perhaps for an exchange; *books* are as they were before."""
        offer = self._offer
        if (before, after) == (LeaseState.REVOKING, LeaseState.LEASED):
            named = offer is not None and lease.lease_id in offer.spared
            require(named, "{} is leased again, and nobody offered others for it", lease)
            self._spared.append((lease, books.revoke_deadlines[lease.lease_id]))
        elif offer is not None and after is LeaseState.REVOKING:
            require(lease.lease_id in offer.offered, "{} was taken and not offered", lease)
            self._taken.append(lease)

    def answered(self, answer: AnswerExchange, books: Books) -> None:
        """What it says is so, or was so when it was said first."""
        key = (answer.session_id, answer.request_id)
        if key in self._answers:
            before = self._answers[key]
            require(before == answer and not self._taken, "{} and then {}", before, answer)
            return
        self._answers[key] = answer
        self._stage.count("exchanges")
        states = {one: books.leases[one].state for one in (*answer.spared, *answer.revoked)}
        for lease_id in answer.spared:
            require(states[lease_id] is LeaseState.LEASED, "spared, but {} is not", lease_id)
        for lease_id in answer.revoked:
            require(states[lease_id] is LeaseState.REVOKING, "taken, but {} is not", lease_id)

    def _settle(self) -> None:
        """An owner has at least as many bytes on their way, by the same time."""
        spared_bytes = sum(lease.nbytes for lease, _ in self._spared)
        taken_bytes = sum(lease.nbytes for lease in self._taken)
        enough = taken_bytes >= spared_bytes
        require(enough, "{} bytes were spared for {}: {}", spared_bytes, taken_bytes, self._offer)
        by = min((deadline for _, deadline in self._spared), default=0.0)
        gpus = {lease.lender for lease, _ in self._spared}
        sessions = {lease.session_id for lease, _ in self._spared}
        for lease in self._taken if self._spared else ():
            require(lease.lender in gpus, "{} is of another GPU than what was spared", lease)
            require(lease.session_id in sessions, "{} is another's", lease)
            deadline = lease.revocation.deadline if lease.revocation is not None else float("inf")
            require(deadline <= by + _SLACK, "{} has more time than what was spared", lease)
        self._spared, self._taken = [], []
