"""What the client has done so far: plain ints, because a labelled counter costs 1.3 us a step.

Whoever counts holds the lock of the thing it counts (the pager's, the session's), or is the only
thread that counts it; so no step is lost and none takes a lock of its own. Reading takes none:
a snapshot may be one step behind.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass(slots=True, kw_only=True)
class Counters:
    """Everything only grows. One object a client."""

    offloads: int = 0
    fetches: int = 0
    releases: int = 0
    peer_out_bytes: int = 0  # offloaded into leased memory
    host_out_bytes: int = 0  # offloaded into host memory
    peer_in_bytes: int = 0  # fetched from leased memory
    host_in_bytes: int = 0  # fetched from host memory
    revokes_served: int = 0  # leases acknowledged because they were asked for
    evacuated_bytes: int = 0  # copied out of revoked leases
    leases_granted: int = 0
    leases_lost: int = 0
    session_opens: int = 0
    session_reattaches: int = 0  # of these sessions, back on a new connection
    session_detaches: int = 0
    breaker_openings: int = 0
    fallbacks: dict[str, int] = field(default_factory=dict)  # to host memory, by reason
    call_failures: dict[str, int] = field(default_factory=dict)  # of the daemon, by reason

    def count_fallback(self, reason: str) -> None:
        """One offload went to host memory because of *reason*."""
        self.fallbacks[reason] = self.fallbacks.get(reason, 0) + 1

    def count_call_failure(self, reason: str) -> None:
        """One call to the daemon was refused, or not answered, because of *reason*."""
        self.call_failures[reason] = self.call_failures.get(reason, 0) + 1

    def snapshot(self) -> dict[str, int | dict[str, int]]:
        """A copy, by name: what `aqua_client.stats()` shows."""
        now: dict[str, int | dict[str, int]] = {}
        for one in fields(self):
            value: int | dict[str, int] = getattr(self, one.name)
            now[one.name] = dict(value) if isinstance(value, dict) else value
        return now
