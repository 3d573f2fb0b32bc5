"""What happens in a run, as records: screens show them, the summary counts them.

Whoever shows them is a `Teller`; telling never fails a run and is told from several threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A new part of the run has begun."""

    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEnded:
    """A conversation has answered once more."""

    run: str  # "reference" or "parking"
    conversation: int
    turns_done: int
    tokens_done: int
    tokens_per_second: float
    resident_bytes: int
    differing: int  # answers that differ from the reference so far


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """A waiting conversation's KV left the budget."""

    conversation: int
    tier_bytes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A conversation's KV is back for its turn."""

    conversation: int
    tier_bytes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokesServed:
    """The client moved what revoked leases held, and gave the slabs back."""

    revokes: int  # more than when this was told last
    evacuated_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerSaid:
    """A line of the owner that takes memory back."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenBack:
    """What a burst of an owner has come to so far: what it got back, and what it lends again."""

    gpu: str
    asked_bytes: int  # all that was lent there
    revoked_bytes: int
    freed_bytes: int
    quarantined_bytes: int
    seconds: float  # from asking to the answer
    lent_again_bytes: int = 0  # leases that live there once the burst is over


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuBytes:
    """One GPU's memory, as the daemon's metrics say."""

    gpu: str
    own: int
    lent: int
    quarantined: int
    returning: int
    free: int
    lendable: int = 0  # of what is free

    @property
    def total(self) -> int:
        """All of it."""
        return self.own + self.lent + self.quarantined + self.returning + self.free


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSeen:
    """The node's GPUs as they are now."""

    gpus: tuple[GpuBytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RushBegan:
    """Requests have come all at once, to an engine that is shared in this way."""

    way: str
    reply_tokens: tuple[int, ...]  # that each will be answered with


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensCame:
    """One of them has more of its answer."""

    way: str
    request: int  # from 0, in the order of coming
    tokens: int
    seconds: float  # since they came


@dataclass(frozen=True, slots=True, kw_only=True)
class RushEnded:
    """All of them have been answered."""

    way: str
    parked: int  # times that one gave way


Happening = (
    Stage
    | TurnEnded
    | Parked
    | Fetched
    | RevokesServed
    | OwnerSaid
    | TakenBack
    | NodeSeen
    | RushBegan
    | TokensCame
    | RushEnded
)
Teller = Callable[[Happening], None]
