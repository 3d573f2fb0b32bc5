"""What the client has done so far: plain ints, because a labelled counter costs 1.3 us a step.

Whoever counts holds the lock of the thing it counts (the pager's, the session's), or is the only
thread that counts it; so no step is lost and none takes a lock of its own. Reading takes none:
a snapshot may be one step behind.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

# Looking at the clock twice costs as much as a tenth of the smallest fetch: only larger ones,
# of which the copy takes a hundred times as long, are timed.
LEAST_TIMED_BYTES = 2**20
TIERS = ("peer", "host", "mixed")
# The bounds of the daemon's buckets: 0.1 ms to 1 s.
FETCH_BOUNDS_NANOSECONDS = tuple(
    microseconds * 1000
    for microseconds in (100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
)


@dataclass(slots=True)
class Durations:
    """How many took at most each bound (the last: longer than any), and all of them together."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(FETCH_BOUNDS_NANOSECONDS) + 1))
    sum_nanoseconds: int = 0

    def count(self, nanoseconds: int) -> None:
        """One more."""
        self.counts[bisect_left(FETCH_BOUNDS_NANOSECONDS, nanoseconds)] += 1
        self.sum_nanoseconds += nanoseconds

    def copy(self) -> Durations:
        """The same, which stays as it is."""
        return Durations(list(self.counts), self.sum_nanoseconds)


@dataclass(slots=True)
class LinkUse:
    """Fetches from one lender that were timed, and were done when the clock was looked at."""

    fetches: int = 0
    nbytes: int = 0
    nanoseconds: int = 0

    def copy(self) -> LinkUse:
        """The same, which stays as it is."""
        return LinkUse(self.fetches, self.nbytes, self.nanoseconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What of the counters the daemon is told, at one moment."""

    peer_offload_bytes: int
    host_offload_bytes: int
    peer_fetch_bytes: int
    host_fetch_bytes: int
    evacuated_bytes: int
    promoted_bytes: int
    fallbacks: Mapping[str, int]
    fetch_durations: Mapping[str, Durations]  # by tier
    fetched_from: Mapping[str, LinkUse]  # by lender GPU


@dataclass(slots=True, kw_only=True)
class Counters:
    """Everything only grows. One object a client."""

    offloads: int = 0
    fetches: int = 0
    prefetches: int = 0  # begun
    releases: int = 0
    peer_out_bytes: int = 0  # offloaded into leased memory
    host_out_bytes: int = 0  # offloaded into host memory
    peer_in_bytes: int = 0  # fetched from leased memory
    host_in_bytes: int = 0  # fetched from host memory
    revokes_served: int = 0  # leases acknowledged because they were asked for
    evacuated_bytes: int = 0  # copied out of revoked leases
    promoted_bytes: int = 0  # brought back from host memory to leases
    leases_granted: int = 0
    leases_lost: int = 0
    leases_exchanged: int = 0  # revoked, and kept because others went back instead
    session_opens: int = 0
    session_reattaches: int = 0  # of these sessions, back on a new connection
    session_detaches: int = 0
    breaker_openings: int = 0
    fallbacks: dict[str, int] = field(default_factory=dict)  # to host memory, by reason
    call_failures: dict[str, int] = field(default_factory=dict)  # of the daemon, by reason
    # By tier, of fetches of LEAST_TIMED_BYTES and more.
    fetch_durations: dict[str, Durations] = field(
        default_factory=lambda: {tier: Durations() for tier in TIERS}
    )
    fetched_from: dict[str, LinkUse] = field(default_factory=dict)  # by lender GPU

    def count_fallback(self, reason: str) -> None:
        """One offload went to host memory because of *reason*."""
        self.fallbacks[reason] = self.fallbacks.get(reason, 0) + 1

    def count_link(self, lender_gpu: str, nbytes: int, nanoseconds: int) -> None:
        """One fetch was all from a slab on that GPU."""
        use = self.fetched_from.get(lender_gpu)
        if use is None:
            use = self.fetched_from[lender_gpu] = LinkUse()
        use.fetches += 1
        use.nbytes += nbytes
        use.nanoseconds += nanoseconds

    def count_call_failure(self, reason: str) -> None:
        """One call to the daemon was refused, or not answered, because of *reason*."""
        self.call_failures[reason] = self.call_failures.get(reason, 0) + 1

    def snapshot(self) -> dict[str, int | dict[str, int]]:
        """A copy, by name, without durations and links: what `aqua_client.stats()` shows."""
        now: dict[str, int | dict[str, int]] = {}
        for one in fields(self):
            if one.name not in {"fetch_durations", "fetched_from"}:
                value: int | dict[str, int] = getattr(self, one.name)
                now[one.name] = dict(value) if isinstance(value, dict) else value
        return now

    def figures(self) -> Figures:
        """A copy of what the daemon's metrics show of clients."""
        return Figures(
            peer_offload_bytes=self.peer_out_bytes,
            host_offload_bytes=self.host_out_bytes,
            peer_fetch_bytes=self.peer_in_bytes,
            host_fetch_bytes=self.host_in_bytes,
            evacuated_bytes=self.evacuated_bytes,
            promoted_bytes=self.promoted_bytes,
            fallbacks=dict(self.fallbacks),
            fetch_durations={tier: one.copy() for tier, one in self.fetch_durations.items()},
            fetched_from={gpu: use.copy() for gpu, use in tuple(self.fetched_from.items())},
        )
