"""Figures of engines, and an engine that does what its informer decides."""

from __future__ import annotations

from collections.abc import Iterable

from aqua_client.informing import (
    GIB,
    BatchFigures,
    Decision,
    Figures,
    Informer,
    Lend,
    LlmFigures,
    Margins,
    Nothing,
    Reclaim,
)

TOTAL = 80 * GIB
SETTLE = Margins().settle_seconds


def batch(free_bytes: int, batch_size: int = 8) -> BatchFigures:
    return BatchFigures(free_bytes=free_bytes, batch_size=batch_size, total_bytes=TOTAL)


def llm(pending: int = 0, free_bytes: int = 30 * GIB, rate: float = 0.5) -> LlmFigures:
    return LlmFigures(
        pending_requests=pending,
        kv_used_bytes=TOTAL - free_bytes,
        kv_total_bytes=TOTAL,
        requests_per_second=rate,
    )


class Engine:
    """Reports, does what is decided, and remembers when something was."""

    def __init__(self, informer: Informer, *, offered_bytes: int = 0) -> None:
        self.informer = informer
        self.offered_bytes = offered_bytes
        self.now = 1000.0
        self.moves: list[tuple[float, Lend | Reclaim]] = []

    def report(self, figures: Figures, *, after: float = 1.0) -> Decision:
        self.now += after
        decision = self.informer.decide(figures, offered_bytes=self.offered_bytes, now=self.now)
        match decision:
            case Lend(nbytes=nbytes):
                self.offered_bytes = nbytes
            case Reclaim(nbytes=nbytes):
                assert 0 < nbytes <= self.offered_bytes
                self.offered_bytes -= nbytes
            case Nothing():
                return decision
        self.moves.append((self.now, decision))
        return decision

    def report_all(self, figures: Iterable[Figures], *, after: float = 1.0) -> list[Decision]:
        return [self.report(one, after=after) for one in figures]

    def settle(self, figures: Figures) -> Decision:
        """The same for long enough."""
        self.report(figures)
        return self.report(figures, after=SETTLE)
