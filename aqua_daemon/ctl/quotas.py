"""`aquactl quota`: what tenants may hold, looked at and set."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from aqua_protos import broker_pb2
from rich.table import Table

from aqua_daemon.config_words import ConfigError, parse_bytes, parse_number, parse_whole
from aqua_daemon.core.sizes import LARGEST_WEIGHT, MOST_PRIORITY, SMALLEST_WEIGHT
from aqua_daemon.ctl.link import Link

MIB = 2**20
SCHEMA = 1
LARGEST_BYTES = 2**48
LARGEST_COUNT = 1_000_000
DEFAULT_WORD = "default"
_WORDS = {
    broker_pb2.QUOTA_OUTCOME_APPLIED: "applied",
    broker_pb2.QUOTA_OUTCOME_DEFERRED: "deferred",
    broker_pb2.QUOTA_OUTCOME_STALE: "stale",
    broker_pb2.QUOTA_OUTCOME_CONFLICT: "conflict",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be set, in words; None: to be left as it is."""

    nbytes: str | None = None
    leases: str | None = None
    sessions: str | None = None
    weight: str | None = None
    priority: str | None = None

    def __str__(self) -> str:
        """For people."""
        named = (
            (self.nbytes, "{}"),
            (self.leases, "{} leases"),
            (self.sessions, "{} sessions"),
            (self.weight, "weight {}"),
            (self.priority, "priority {}"),
        )
        return ", ".join(what.format(word) for word, what in named if word is not None)

    @property
    def has_counts(self) -> bool:
        """Whether it names what daemons of 0.1.0 do not know."""
        return self.leases is not None or self.sessions is not None

    @property
    def has_rank(self) -> bool:
        """Whether it names a weight or a priority, which they do not know either."""
        return self.weight is not None or self.priority is not None

    def request(self, tenant: str, revision: int | None) -> broker_pb2.SetQuotaRequest:
        """The call that sets it.

        Raises:
            ValueError: a word that is none, or nothing is named; the message says what may be given.
        """
        if self == Wish():
            msg = "say what to set: a SIZE or --bytes, --leases, --sessions, --weight, --priority"
            raise ValueError(msg)
        request = broker_pb2.SetQuotaRequest(
            request_id=secrets.token_hex(16),
            tenant=tenant,
            revision=revision or 0,
            knows_deferred=True,
        )
        try:
            self._fill(request)
            self._fill_rank(request)
        except ConfigError as error:
            raise ValueError(f"{error}, or {DEFAULT_WORD}") from error
        return request

    def _fill(self, request: broker_pb2.SetQuotaRequest) -> None:
        if self.nbytes == DEFAULT_WORD:
            request.use_default = True
        elif self.nbytes is not None:
            request.nbytes = parse_bytes("quota", self.nbytes, 0, LARGEST_BYTES)
        if self.leases == DEFAULT_WORD:
            request.default_leases = True
        elif self.leases is not None:
            request.leases = parse_whole("leases", self.leases, 0, LARGEST_COUNT)
        if self.sessions == DEFAULT_WORD:
            request.default_sessions = True
        elif self.sessions is not None:
            request.sessions = parse_whole("sessions", self.sessions, 0, LARGEST_COUNT)

    def _fill_rank(self, request: broker_pb2.SetQuotaRequest) -> None:
        if self.weight == DEFAULT_WORD:
            request.default_weight = True
        elif self.weight is not None:
            request.weight = parse_number("weight", self.weight, SMALLEST_WEIGHT, LARGEST_WEIGHT)
        if self.priority == DEFAULT_WORD:
            request.default_priority = True
        elif self.priority is not None:
            most = MOST_PRIORITY
            request.priority = parse_whole("priority", self.priority, -most, most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What came of setting a quota."""

    outcome: str  # applied, deferred, stale, conflict; "now" in a dry run
    quota: broker_pb2.Quota

    @property
    def is_in_force(self) -> bool:
        """Whether the caller got what it wanted."""
        return self.outcome in {"applied", "deferred"}


def fetch_quotas(link: Link) -> broker_pb2.GetQuotasReply:
    """Those that the caller may see, and what callers may ask."""
    return link.call("GetQuotas", broker_pb2.GetQuotasRequest(), broker_pb2.GetQuotasReply)


def set_quota(link: Link, request: broker_pb2.SetQuotaRequest) -> Setting:
    """Set it; raises as `Link.call` does."""
    reply = link.call("SetQuota", request, broker_pb2.SetQuotaReply)
    return Setting(outcome=_WORDS[reply.outcome], quota=reply.quota)


def quotas_table(quotas: Iterable[broker_pb2.Quota], *, has_counts: bool = True) -> Table:
    """A line per tenant, those who hold most first; not *has_counts*: the daemon is of 0.1.0."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("TENANT", overflow="fold")
    for column in ("QUOTA MIB", "HELD MIB", "LEASES", "SESSIONS", "REVISION"):
        table.add_column(column, justify="right", no_wrap=True)
    quotas = tuple(quotas)
    has_rank = any(not (one.weight_is_default and one.priority_is_default) for one in quotas)
    has_rank = has_rank and has_counts
    for column in ("WEIGHT", "PRIORITY") if has_rank else ():
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for quota in sorted(quotas, key=lambda quota: (-quota.held_bytes, quota.tenant)):
        table.add_row(
            quota.tenant,
            f"{quota.nbytes / MIB:g}",
            f"{quota.held_bytes / MIB:g}",
            f"{quota.held_leases}/{quota.leases}" if has_counts else "-",
            f"{quota.held_sessions}/{quota.sessions}" if has_counts else "-",
            str(quota.revision),
            *((f"{quota.weight:g}", str(quota.priority)) if has_rank else ()),
            remark(quota),
        )
    return table


def callers_line(limits: broker_pb2.CallerLimits) -> str:
    """What a process and a user may ask, in one line."""
    return (
        f"a process: {limits.sessions_per_process} sessions, {limits.calls_per_process} calls "
        f"under way, {limits.calls_per_second_per_process:g} a second; "
        f"a user: {limits.connections_per_uid} connections, {limits.calls_per_uid} calls "
        f"under way, {limits.calls_per_second_per_uid:g} a second"
    )


def remark(quota: broker_pb2.Quota) -> str:
    """What is to be known of a quota beside its figures."""
    if quota.held_bytes > quota.nbytes or quota.held_leases > quota.leases:
        return "over: nothing is granted until it gives back"
    if quota.held_sessions > quota.sessions:
        return "over: no session is opened until some have ended"
    are_default = quota.is_default and quota.leases_are_default and quota.sessions_are_default
    are_default = are_default and quota.weight_is_default and quota.priority_is_default
    return DEFAULT_WORD if are_default else ""


def sentence(setting: Setting) -> str:
    """What came of it, and what is in force."""
    quota = setting.quota
    size = "the default" if quota.is_default else f"{quota.nbytes / MIB:g} MiB"
    leases = "" if quota.leases_are_default else f", {quota.leases} leases"
    sessions = "" if quota.sessions_are_default else f", {quota.sessions} sessions"
    weight = f", weight {quota.weight:g}" if quota.weight and not quota.weight_is_default else ""
    # Daemons of 0.1.0 say nothing of either.
    has_priority = quota.priority and not quota.priority_is_default
    priority = f", priority {quota.priority}" if has_priority else ""
    in_force = f"{quota.tenant} has {size}{leases}{sessions}{weight}{priority}, "
    in_force += f"revision {quota.revision}"
    match setting.outcome:
        case "applied" | "deferred":
            said = remark(quota)
            over = f"; it is {said}" if said.startswith("over") else ""
            return f"{setting.outcome}: {in_force}{over}"
        case "stale":
            return f"stale: a later revision is in force: {in_force}. Look, then set a later one"
        case "conflict":
            return f"conflict: that revision is in force otherwise: {in_force}. Set a later one"
        case _:
            return f"{setting.outcome}: {in_force}"


def quota_document(quota: broker_pb2.Quota) -> dict[str, object]:
    """Every field under its own name."""
    return {field.name: getattr(quota, field.name) for field in quota.DESCRIPTOR.fields}


def callers_document(limits: broker_pb2.CallerLimits) -> dict[str, object]:
    """Every field under its own name."""
    return {field.name: getattr(limits, field.name) for field in limits.DESCRIPTOR.fields}
