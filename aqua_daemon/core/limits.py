"""How much a tenant may hold: what admins set, what is in force, and what came of a setting.

Covers the records. Does not cover the rules by which a setting is taken (quotas), nor what is held
(accounts).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class QuotaOutcome(Enum):
    """What came of setting a quota."""

    APPLIED = "applied"  # it is in force under the revision named
    DEFERRED = "deferred"  # it is, and more than that is held: it comes back by itself
    STALE = "stale"  # a later revision is in force
    CONFLICT = "conflict"  # the same revision is in force, with other limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a tenant may hold."""

    nbytes: int
    leases: int
    sessions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What an admin set for a tenant; a higher revision replaces a lower.

    None is the node's default; for a sub-tenant, no limit of its own.
    """

    revision: int
    nbytes: int | None
    leases: int | None = None
    sessions: int | None = None
    weight: float | None = None  # of its fair share; above 0, and 1 where it is not set
    priority: int | None = None  # who has less gives back first; 0 where it is not set

    def over(self, default: Limits) -> Limits:
        """What may be held where *default* holds for what is not set."""
        return Limits(
            nbytes=default.nbytes if self.nbytes is None else self.nbytes,
            leases=default.leases if self.leases is None else self.leases,
            sessions=default.sessions if self.sessions is None else self.sessions,
        )


UNSET = Quota(revision=0, nbytes=None)
