"""Sums what clients say of themselves: each session's figures only grow, so what is new is added.

Covers differences, sessions that come again, and reasons that nobody knows. Does not cover what is
on the wire (wire.figures) nor names that Prometheus sees (metrics). The figures are the clients'
own word, and nothing but metrics is made of them.

A process may outlive sessions and daemons. It says at its greeting what a daemon has heard of it
before: a daemon that knows nothing of the session counts from there, so that nothing is counted
twice. Figures that fall are taken for what they were, until they have grown past that again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import add, sub

from aqua_daemon.adapters.tally import denial_reasons
from aqua_daemon.adapters.wire.figures import FETCH_TIERS, ClientFigures, FetchDurations
from aqua_daemon.core.model import SessionId

OTHER_REASON = "other"
# Why a client may go to host memory by itself; why it was refused comes on top.
CLIENT_REASONS = frozenset(
    {
        *("bad_frame", "bad_reply", "breaker", "busy", "canary", "closed", "cuda_handle"),
        *("cuda_open", "detached", "forked", "internal", "lost", "map", "no_cuda", "no_daemon"),
        *(
            "no_descriptors",
            "no_own_gpu",
            "no_permission",
            "pid_namespace",
            "protocol",
            "refused",
            "restarting",
            "revoked",
        ),
        *("same_gpu", "silent", "starting", "timeout", "unavailable", "unknown_session"),
    }
)


# All that are counted by their own names.
_REASONS = tuple(sorted({*CLIENT_REASONS, *denial_reasons(), OTHER_REASON}))


class ClientTally:
    """All sessions' figures together, since the daemon's start."""

    def __init__(self) -> None:
        self._heard: dict[SessionId, ClientFigures] = {}  # the most that each has said
        self._total = _folded(ClientFigures())

    def totals(self) -> ClientFigures:
        """The sums as they are now; a frozen record."""
        return self._total

    def greeted(self, session_id: SessionId, heard_before: ClientFigures | None) -> None:
        """A session is there, for the first time or again."""
        self._heard.setdefault(session_id, _folded(heard_before or ClientFigures()))

    def said(self, session_id: SessionId, figures: ClientFigures | None) -> None:
        """Add what is new; a client may have nothing to say."""
        before = self._heard.get(session_id)
        if before is None or figures is None:
            return
        folded = _folded(figures)
        if folded == before:  # as most are on an idle node, which is to cost nothing
            return
        most = _combined(before, folded, max)
        self._heard[session_id] = most
        self._total = _combined(self._total, _combined(most, before, sub), add)

    def forget(self, session_id: SessionId) -> None:
        """The session is over; what it did stays counted."""
        self._heard.pop(session_id, None)


def _folded(figures: ClientFigures) -> ClientFigures:
    """With every reason by a known name: a client can't make the daemon remember others."""
    folded = dict.fromkeys(_REASONS, 0)
    for reason, count in figures.fallbacks.items():
        folded[reason if reason in folded else OTHER_REASON] += count
    return replace(figures, fallbacks=folded)


def _combined(
    one: ClientFigures, other: ClientFigures, how: Callable[[int, int], int]
) -> ClientFigures:
    def mapped(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
        return {key: how(value, second.get(key, 0)) for key, value in first.items()}

    def of_tier(tier: str) -> FetchDurations:
        first = one.fetch_durations.get(tier, FetchDurations())
        second = other.fetch_durations.get(tier, FetchDurations())
        return FetchDurations(
            counts=tuple(map(how, first.counts, second.counts)),
            sum_nanoseconds=how(first.sum_nanoseconds, second.sum_nanoseconds),
        )

    return ClientFigures(
        offload_bytes=mapped(one.offload_bytes, other.offload_bytes),
        fetch_bytes=mapped(one.fetch_bytes, other.fetch_bytes),
        evacuated_bytes=how(one.evacuated_bytes, other.evacuated_bytes),
        promoted_bytes=how(one.promoted_bytes, other.promoted_bytes),
        fallbacks=mapped(one.fallbacks, other.fallbacks),
        fetch_durations={tier: of_tier(tier) for tier in FETCH_TIERS},
    )
