"""What there is to show: happenings folded into the state of a screen. Told from any thread."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import assert_never

from aqua_client.demo.happenings import (
    Fetched,
    GpuBytes,
    Happening,
    NodeSeen,
    OwnerSaid,
    Parked,
    RevokesServed,
    RushBegan,
    RushEnded,
    Stage,
    TakenBack,
    TokensCame,
    TurnEnded,
)
from aqua_client.demo.plan import Plan, mib
from aqua_client.demo.timelines import Timeline, heading

NEWS_KEPT = 9
MOVES_KEPT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One event, ready to be shown."""

    seconds: float  # since the start
    kind: str  # "stage", "parked", "fetched", "revoked" or "owner"
    text: str

    @property
    def is_move(self) -> bool:
        """Of the many that only say what was parked and fetched."""
        return self.kind in {"parked", "fetched"}


@dataclass(slots=True)
class Board:
    """The state of the run, as its screens show it."""

    plan: Plan
    started_at: float = field(default_factory=time.monotonic)
    stage: str = ""
    runs: dict[str, TurnEnded] = field(default_factory=dict)  # the last turn of each run
    gpus: tuple[GpuBytes, ...] = ()
    news: deque[Line] = field(default_factory=lambda: deque(maxlen=NEWS_KEPT))
    moves: deque[Line] = field(default_factory=lambda: deque(maxlen=MOVES_KEPT))
    parked_bytes: Counter[str] = field(default_factory=Counter)
    fetched_bytes: Counter[str] = field(default_factory=Counter)
    revokes: int = 0
    evacuated_bytes: int = 0
    taken_back: TakenBack | None = None
    timelines: dict[str, Timeline] = field(default_factory=dict)  # of the rush, by its way
    lock: threading.RLock = field(default_factory=threading.RLock)

    def tell(self, happening: Happening) -> Line | None:
        """Take in what has happened; its line, if it is one of the events."""
        with self.lock:
            line = self._take(happening)
            if line is not None:
                (self.moves if line.is_move else self.news).append(line)
            return line

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started_at

    def _take(self, happening: Happening) -> Line | None:
        match happening:
            case Stage(title=title):
                self.stage = title
                return self._line("stage", title)
            case TurnEnded(run=run):
                self.runs[run] = happening
                return None
            case NodeSeen(gpus=gpus):
                self.gpus = gpus
                return None
            case Parked(conversation=number, tier_bytes=tier_bytes):
                self.parked_bytes.update(tier_bytes)
                return self._line("parked", f"conversation {number} -> {in_tiers(tier_bytes)}")
            case Fetched(conversation=number, tier_bytes=tier_bytes):
                self.fetched_bytes.update(tier_bytes)
                return self._line("fetched", f"conversation {number} <- {in_tiers(tier_bytes)}")
            case RevokesServed(revokes=revokes, evacuated_bytes=nbytes):
                self.revokes += revokes
                self.evacuated_bytes += nbytes
                return self._line("revoked", f"{revokes} served, {mib(nbytes)} moved away")
            case OwnerSaid(text=text):
                return self._line("owner", text)
            case TakenBack():
                self.taken_back = happening
                return None
            case RushBegan(way=way):
                self.timelines[way] = Timeline.of(happening)
                return None
            case TokensCame(way=way):
                self.timelines[way].take(happening)
                return None
            case RushEnded(way=way):
                self.timelines[way].take(happening)
                return self._line("rush", heading(self.timelines[way]))
        assert_never(happening)

    def _line(self, kind: str, text: str) -> Line:
        return Line(seconds=self.seconds(), kind=kind, text=text)


def in_tiers(tier_bytes: dict[str, int]) -> str:
    """Bytes by tier, in words."""
    said = ", ".join(f"{tier} {mib(nbytes)}" for tier, nbytes in sorted(tier_bytes.items()))
    return said or "nothing"
