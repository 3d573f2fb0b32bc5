"""The settings that say how many: leases and sessions of a tenant, calls of a process and of a uid.

Covers each one's default and range. Does not cover what they are compared with (core.quotas,
adapters.call_limits, adapters.presence_link).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aqua_daemon.config_words import parse_whole
from aqua_daemon.core.sizes import MOST_TENANT_LEASES, MOST_TENANT_SESSIONS

LIMIT_DEFAULTS: Mapping[str, str] = {
    "tenant_quota_leases": f"{MOST_TENANT_LEASES}",
    "tenant_quota_sessions": f"{MOST_TENANT_SESSIONS}",
    "connections_per_uid": "256",
    "sessions_per_process": "64",
    "calls_per_process": "128",
    "calls_per_uid": "512",
    "calls_per_second_per_process": "4000",
    "calls_per_second_per_uid": "8000",
}
LARGEST_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CountLimits:
    """How many of what."""

    tenant_quota_leases: int
    tenant_quota_sessions: int
    connections_per_uid: int
    sessions_per_process: int
    calls_per_process: int  # under way at the same time
    calls_per_uid: int
    calls_per_second_per_process: int
    calls_per_second_per_uid: int


def read_limits(words: Mapping[str, str]) -> CountLimits:
    """Each from its word.

    Raises:
        ConfigError: the first that is no whole number from 1 to `LARGEST_LIMIT`.
    """
    return CountLimits(
        **{key: parse_whole(key, words[key], 1, LARGEST_LIMIT) for key in LIMIT_DEFAULTS}
    )
