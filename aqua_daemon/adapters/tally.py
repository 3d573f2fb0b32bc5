"""Counts what happens on the node: plain integers, fed as a journal, read at a scrape.

Covers what a snapshot can't tell because it is over: grants, denials, revokes, reclaims, scrubbed
bytes. Does not cover the names and form that Prometheus sees (metrics.py) nor what is true now
(the broker's snapshot). All of it happens on the event loop; a reader gets a copy.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from aqua_daemon.core.errors import BrokerBug, BrokerError
from aqua_daemon.core.events import Event, KeeperEnded, LeaseRequested, SlabFreed
from aqua_daemon.core.instructions import (
    AnswerDenied,
    AnswerGranted,
    AnswerReclaim,
    ForgetSession,
    Instruction,
    NoteMove,
    NoteRebalance,
)
from aqua_daemon.core.model import (
    GpuUuid,
    LeaseState,
    RebalanceBlock,
    RequestId,
    RevokeReason,
    SessionId,
)

# A cache revoke may take 0.25 s, a standard one 2 s, and 2 s later it has ended anyhow.
DURATION_BUCKETS_SECONDS = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_NANOSECONDS = 10**9


class RevokeOutcome(Enum):
    """Where a lease went from REVOKING."""

    RETURNED = "returned"
    QUARANTINED = "quarantined"
    LOST = "lost"
    SPARED = "spared"  # its holder gave others instead


_OUTCOMES = {
    LeaseState.RETURNED: RevokeOutcome.RETURNED,
    LeaseState.QUARANTINED: RevokeOutcome.QUARANTINED,
    LeaseState.LOST: RevokeOutcome.LOST,
    LeaseState.LEASED: RevokeOutcome.SPARED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """A histogram: how many took at most each bucket's seconds (the last: any), and their sum."""

    counts: tuple[int, ...] = (0,) * (len(DURATION_BUCKETS_SECONDS) + 1)
    sum_nanoseconds: int = 0

    def with_one_more(self, seconds: float) -> Durations:
        """The same and one of *seconds*."""
        counts = list(self.counts)
        counts[bisect_left(DURATION_BUCKETS_SECONDS, seconds)] += 1
        more = int(seconds * _NANOSECONDS)
        return Durations(counts=tuple(counts), sum_nanoseconds=self.sum_nanoseconds + more)

    @property
    def sum_seconds(self) -> float:
        """How long all of them took together."""
        return self.sum_nanoseconds / _NANOSECONDS


def denial_reasons() -> tuple[str, ...]:
    """Every reason that a refusal can have, so that each is counted from 0."""
    return tuple(sorted({kind.reason for kind in _kinds_of(BrokerError)}))


@dataclass(slots=True, kw_only=True)
class Counts:
    """Everything since the daemon's start."""

    granted: int = 0
    denials: dict[str, int] = field(default_factory=lambda: dict.fromkeys(denial_reasons(), 0))
    revokes: dict[tuple[RevokeReason, RevokeOutcome], int] = field(
        default_factory=lambda: {(why, how): 0 for why in RevokeReason for how in RevokeOutcome}
    )
    revoke_durations: Durations = Durations()
    reclaim_durations: Durations = Durations()
    scrubbed_bytes: int = 0
    keeper_ends: Counter[GpuUuid] = field(default_factory=Counter)
    leases_lost: Counter[GpuUuid] = field(default_factory=Counter)
    rebalance_moves: int = 0
    rebalance_blocks: dict[RebalanceBlock, int] = field(
        default_factory=lambda: dict.fromkeys(RebalanceBlock, 0)
    )

    @property
    def denied(self) -> int:
        """Lease requests that were refused, for whatever reason."""
        return sum(self.denials.values())


class Tally:
    """A journal that only counts."""

    def __init__(self) -> None:
        self._counts = Counts()
        # Denials name a request, not what it asked for; those of reclaims are none of leases.
        self._asked: set[tuple[SessionId, RequestId]] = set()

    def counts(self) -> Counts:
        """A copy of the counts as they are now."""
        now = self._counts
        return Counts(
            granted=now.granted,
            denials=dict(now.denials),
            revokes=dict(now.revokes),
            revoke_durations=now.revoke_durations,
            reclaim_durations=now.reclaim_durations,
            scrubbed_bytes=now.scrubbed_bytes,
            keeper_ends=Counter(now.keeper_ends),
            leases_lost=Counter(now.leases_lost),
            rebalance_moves=now.rebalance_moves,
            rebalance_blocks=dict(now.rebalance_blocks),
        )

    def event(self, event: Event) -> None:
        """Something happened."""
        match event:
            case LeaseRequested():
                self._asked.add((event.session_id, event.request_id))
            case SlabFreed():
                self._counts.scrubbed_bytes += event.scrubbed_bytes
            case KeeperEnded(gpus=gpus):
                self._counts.keeper_ends.update(gpus)
            case _:
                pass

    def instructed(self, *wanted: Instruction) -> None:
        """The broker wants all this done about the last event."""
        for instruction in wanted:
            self._count(instruction)

    def _count(self, instruction: Instruction) -> None:
        match instruction:
            case NoteMove():
                self._moved(instruction)
            case AnswerGranted(session_id=session_id, request_id=request_id):
                self._asked.discard((session_id, request_id))
            case AnswerDenied(session_id=session_id, request_id=request_id, error=error):
                self._denied((session_id, request_id), error)
            case AnswerReclaim(seconds=seconds):
                durations = self._counts.reclaim_durations.with_one_more(seconds)
                self._counts.reclaim_durations = durations
            case NoteRebalance(block=None):
                self._counts.rebalance_moves += 1
            case NoteRebalance(block=block) if block is not None:
                self._counts.rebalance_blocks[block] += 1
            case ForgetSession(session_id=session_id):
                self._asked = {key for key in self._asked if key[0] != session_id}
            case _:
                pass

    def refused(self, event: Event, error: Exception) -> None:
        """The broker refused an event."""
        if isinstance(event, LeaseRequested):
            self._denied((event.session_id, event.request_id), error)

    def _moved(self, move: NoteMove) -> None:
        if (move.before, move.after) == (LeaseState.ALLOCATING, LeaseState.LEASED):
            self._counts.granted += 1
        if move.after is LeaseState.LOST:
            self._counts.leases_lost[move.lease.lender] += 1
        outcome = _OUTCOMES.get(move.after) if move.after else None
        revocation = move.spared or move.lease.revocation
        if move.before is LeaseState.REVOKING and outcome and revocation:
            self._counts.revokes[revocation.reason, outcome] += 1
            durations = self._counts.revoke_durations.with_one_more(move.seconds)
            self._counts.revoke_durations = durations

    def _denied(self, asked: tuple[SessionId, RequestId], error: Exception) -> None:
        if asked in self._asked:
            self._asked.discard(asked)
            kind = type(error) if isinstance(error, BrokerError) else BrokerBug
            self._counts.denials[kind.reason] += 1


def cumulative(
    counts: Sequence[int], bounds_seconds: Sequence[float] = DURATION_BUCKETS_SECONDS
) -> Mapping[str, int]:
    """The buckets as Prometheus wants them: each with all that are smaller."""
    bounds = [*(f"{bound:g}" for bound in bounds_seconds), "+Inf"]
    total, found = 0, {}
    for bound, count in zip(bounds, counts, strict=True):
        total += count
        found[bound] = total
    return found


def _kinds_of(kind: type[BrokerError]) -> Iterator[type[BrokerError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds_of(below)
