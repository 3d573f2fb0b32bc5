"""Sums what clients say of themselves: each session's figures only grow, so what is new is added.

Covers differences, sessions that come again, and reasons that nobody knows. Does not cover what is
on the wire (wire.figures) nor names that Prometheus sees (metrics). The figures are the clients'
own word: metrics are made of them, and what they say of links may change an order.

A process may outlive sessions and daemons. It says at its greeting what a daemon has heard of it
before: a daemon that knows nothing of the session counts from there, so that nothing is counted
twice. Figures that fall are taken for what they were, until they have grown past that again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import add, sub

from aqua_daemon.adapters.tally import denial_reasons
from aqua_daemon.adapters.wire.figures import (
    FETCH_TIERS,
    ClientFigures,
    FetchDurations,
    LinkFetches,
)
from aqua_daemon.core.events import Event, LinksUsed
from aqua_daemon.core.link_figures import LinkUse
from aqua_daemon.core.model import GpuUuid, SessionId

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
        self.on_links: Callable[[SessionId, Mapping[GpuUuid, LinkFetches]], None] = _for_nobody
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
        most = replace(most, fetched_from=folded.fetched_from)
        if folded.fetched_from != before.fetched_from:
            self.on_links(session_id, _new_fetches(before.fetched_from, folded.fetched_from))
        self._heard[session_id] = most
        self._total = _combined(self._total, _combined(most, before, sub), add)

    def forget(self, session_id: SessionId) -> None:
        """The session is over; what it did stays counted."""
        self._heard.pop(session_id, None)


def links_used(
    submit: Callable[[Event], None],
) -> Callable[[SessionId, Mapping[GpuUuid, LinkFetches]], None]:
    """What makes an event of each word about links."""

    def tell(session_id: SessionId, links: Mapping[GpuUuid, LinkFetches]) -> None:
        uses = tuple(
            LinkUse(
                lender=gpu,
                fetches=one.fetches,
                nbytes=one.nbytes,
                seconds=one.nanoseconds / 1e9,
            )
            for gpu, one in links.items()
        )
        submit(LinksUsed(session_id=session_id, uses=uses))

    return tell


def _for_nobody(_session_id: SessionId, _links: Mapping[GpuUuid, LinkFetches]) -> None:
    """Until somebody wants to hear of links."""


def _new_fetches(
    before: Mapping[GpuUuid, LinkFetches], after: Mapping[GpuUuid, LinkFetches]
) -> dict[GpuUuid, LinkFetches]:
    nothing = LinkFetches()
    return {
        gpu: LinkFetches(
            fetches=now.fetches - (known := before.get(gpu, nothing)).fetches,
            nbytes=now.nbytes - known.nbytes,
            nanoseconds=now.nanoseconds - known.nanoseconds,
        )
        for gpu, now in after.items()
    }


def _folded(figures: ClientFigures) -> ClientFigures:
    """With every reason by a known name: a client can't make the daemon remember others."""
    folded = dict.fromkeys(_REASONS, 0)
    for reason, count in figures.fallbacks.items():
        folded[reason if reason in folded else OTHER_REASON] += count
    return replace(figures, fallbacks=folded)


def _combined(
    one: ClientFigures, other: ClientFigures, how: Callable[[int, int], int]
) -> ClientFigures:
    """Without links, which are in no sum."""

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
