"""`aquactl quota`: what tenants may hold, looked at and set."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from aqua_protos import broker_pb2
from rich.table import Table

from aqua_daemon.config_words import ConfigError, parse_bytes
from aqua_daemon.ctl.link import Link

MIB = 2**20
SCHEMA = 1
LARGEST_BYTES = 2**48
DEFAULT_WORD = "default"
_WORDS = {
    broker_pb2.QUOTA_OUTCOME_APPLIED: "applied",
    broker_pb2.QUOTA_OUTCOME_STALE: "stale",
    broker_pb2.QUOTA_OUTCOME_CONFLICT: "conflict",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What came of setting a quota."""

    outcome: str  # applied, stale, conflict; "not tried" in a dry run
    quota: broker_pb2.Quota

    @property
    def is_in_force(self) -> bool:
        """Whether the caller got what it wanted."""
        return self.outcome == "applied"


def wanted_bytes(text: str) -> int | None:
    """`512MiB`, a number of bytes, or `default`, which is None.

    Raises:
        ValueError: something else; the message says what may be given.
    """
    if text == DEFAULT_WORD:
        return None
    try:
        return parse_bytes("quota", text, 0, LARGEST_BYTES)
    except ConfigError as error:
        raise ValueError(f"{error}, or {DEFAULT_WORD}") from error


def fetch_quotas(link: Link, tenant: str | None) -> list[broker_pb2.Quota]:
    """Those that the caller may see; of one tenant if it is named."""
    reply = link.call("GetQuotas", broker_pb2.GetQuotasRequest(), broker_pb2.GetQuotasReply)
    return [one for one in reply.quotas if tenant in {None, one.tenant}]


def set_quota(link: Link, tenant: str, nbytes: int | None, revision: int | None) -> Setting:
    """Set it; raises as `Link.call` does."""
    request = broker_pb2.SetQuotaRequest(
        request_id=secrets.token_hex(16), tenant=tenant, revision=revision or 0
    )
    if nbytes is None:
        request.use_default = True
    else:
        request.nbytes = nbytes
    reply = link.call("SetQuota", request, broker_pb2.SetQuotaReply)
    return Setting(outcome=_WORDS[reply.outcome], quota=reply.quota)


def quotas_table(quotas: Iterable[broker_pb2.Quota]) -> Table:
    """A line per tenant, those who hold most first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("TENANT", overflow="fold")
    for column in ("QUOTA MIB", "HELD MIB", "REVISION"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for quota in sorted(quotas, key=lambda quota: (-quota.held_bytes, quota.tenant)):
        table.add_row(
            quota.tenant,
            f"{quota.nbytes / MIB:g}",
            f"{quota.held_bytes / MIB:g}",
            str(quota.revision),
            remark(quota),
        )
    return table


def remark(quota: broker_pb2.Quota) -> str:
    """What is to be known of a quota beside its figures."""
    if quota.held_bytes > quota.nbytes:
        return "over: nothing is granted until it gives back"
    return "default" if quota.is_default else ""


def sentence(setting: Setting) -> str:
    """What came of it, and what is in force."""
    quota = setting.quota
    size = "the default" if quota.is_default else f"{quota.nbytes / MIB:g} MiB"
    in_force = f"{quota.tenant} has {size}, revision {quota.revision}"
    match setting.outcome:
        case "applied":
            held = remark(quota) if quota.held_bytes > quota.nbytes else ""
            return f"applied: {in_force}" + (f"; it is {held}" if held else "")
        case "stale":
            return f"stale: a later revision is in force: {in_force}. Look, then set a later one"
        case "conflict":
            return f"conflict: that revision is in force otherwise: {in_force}. Set a later one"
        case _:
            return f"{setting.outcome}: {in_force}"


def quota_document(quota: broker_pb2.Quota) -> dict[str, object]:
    """Every field under its own name."""
    return {
        "tenant": quota.tenant,
        "nbytes": quota.nbytes,
        "is_default": quota.is_default,
        "revision": quota.revision,
        "held_bytes": quota.held_bytes,
    }
