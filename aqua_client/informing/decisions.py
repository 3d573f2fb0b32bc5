"""What an engine says of itself, and what is decided of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from aqua_client.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFigures:
    """Of an engine that works in batches (images, audio, embeddings), after one of them."""

    free_bytes: int  # of the GPU, that the engine did not use at its peak; what is lent is free
    batch_size: int
    total_bytes: int  # of the GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmFigures:
    """Of an engine that serves a language model, at one moment."""

    pending_requests: int  # that wait for their first token
    kv_used_bytes: int
    kv_total_bytes: int  # what the KV cache could have if nothing were lent
    requests_per_second: float = 0.0


Figures = BatchFigures | LlmFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class Lend:
    """From now on *nbytes* may be lent, in all."""

    nbytes: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaim:
    """Of what is offered, *nbytes* are needed back."""

    nbytes: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """The offer stays as it is."""

    reason: str


Decision = Lend | Reclaim | Nothing


class Informer(Protocol):
    """A policy of one engine. One thread at a time."""

    def decide(self, figures: Figures, *, offered_bytes: int, now: float) -> Decision:
        """What to do, *offered_bytes* being offered now; *now* in seconds, of any clock.

        Raises:
            InvalidRequest: the figures are of another kind of engine, or can't be.
        """
        ...


def check_figures(figures: Figures) -> None:
    """Refuse what can't be measured.

    Raises:
        InvalidRequest: names the figures.
    """
    match figures:
        case BatchFigures():
            is_possible = 0 <= figures.free_bytes <= figures.total_bytes and figures.batch_size >= 1
        case LlmFigures():
            is_possible = (
                min(figures.pending_requests, figures.kv_used_bytes, figures.kv_total_bytes) >= 0
                and math.isfinite(figures.requests_per_second)
                and figures.requests_per_second >= 0
            )
    if not is_possible:
        msg = f"{figures} can't be: no figure is below 0, and no part larger than its whole"
        raise InvalidRequest(msg)
