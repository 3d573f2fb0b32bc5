"""`aquactl quota get` and `aquactl quota set`."""

from __future__ import annotations

from pathlib import Path

import click
from aqua_protos import broker_pb2
from aqua_protos.agreement import QUOTA_COUNTS, QUOTA_WEIGHTS

from aqua_daemon.ctl.link import opened
from aqua_daemon.ctl.options import (
    FAILED,
    console,
    dry_run_option,
    json_option,
    print_document,
    seconds_option,
    socket_option,
)
from aqua_daemon.ctl.quotas import (
    SCHEMA,
    Setting,
    Wish,
    callers_document,
    callers_line,
    fetch_quotas,
    quota_document,
    quotas_table,
    sentence,
    set_quota,
)


@click.group("quota")
def quota_commands() -> None:
    """What each tenant may hold: look, or set it as an admin."""


@quota_commands.command("get")
@click.argument("tenant", required=False)
@socket_option
@seconds_option
@json_option
def get_command(path: Path, seconds: float, tenant: str | None, *, as_json: bool) -> int:
    """The quota of TENANT, or of all that you may see."""
    with opened(path, seconds=seconds) as link:
        reply = fetch_quotas(link)
        has_counts = link.knows(QUOTA_COUNTS)
    found = [one for one in reply.quotas if tenant in {None, one.tenant}]
    if as_json:
        quotas = [quota_document(one) for one in found]
        callers = callers_document(reply.caller_limits)
        print_document({"schema": SCHEMA, "quotas": quotas, "callers": callers})
    elif found:
        console().print(quotas_table(found, has_counts=has_counts))
        if has_counts:
            click.echo(callers_line(reply.caller_limits))
    if tenant is not None and not found:
        click.echo(f"aquactl: {tenant} has no session, no lease and no quota set", err=True)
        return FAILED
    return 0


@quota_commands.command("set")
@click.argument("tenant")
@click.argument("size", required=False)
@click.option("--bytes", "nbytes", metavar="SIZE", help="As SIZE: 4GiB, or `default`.")
@click.option("--leases", metavar="N", help="How many leases, or `default`.")
@click.option("--sessions", metavar="N", help="How many sessions, or `default`.")
@click.option("--weight", metavar="W", help="Of its share of what is short, or `default`: 1.")
@click.option("--priority", metavar="P", help="Who has less is asked first; or `default`: 0.")
@click.option(
    "--revision",
    type=click.IntRange(min=1),
    help="That the setting is to have; a later one in force wins. Without: the next.",
)
@dry_run_option
@socket_option
@seconds_option
@json_option
def set_command(
    path: Path,
    seconds: float,
    tenant: str,
    size: str | None,
    nbytes: str | None,
    leases: str | None,
    sessions: str | None,
    weight: str | None,
    priority: str | None,
    revision: int | None,
    *,
    is_dry_run: bool,
    as_json: bool,
) -> int:
    """Let TENANT hold SIZE (such as 4GiB, or `default`). It is kept over restarts.

    What is not named stays as it is. Below what TENANT holds nothing is taken back: it gets nothing
    more until it gave back.
    """
    if size is not None and nbytes is not None:
        raise click.UsageError("give the bytes once: SIZE or --bytes")
    wish = Wish(
        nbytes=size if nbytes is None else nbytes,
        leases=leases,
        sessions=sessions,
        weight=weight,
        priority=priority,
    )
    try:
        request = wish.request(tenant, revision)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with opened(path, seconds=seconds) as link:
        if is_dry_run:
            quotas = fetch_quotas(link).quotas
            return _say_only([one for one in quotas if one.tenant == tenant], tenant, wish)
        if wish.has_counts:
            link.require(QUOTA_COUNTS, "quotas of leases and sessions")
        if wish.has_rank:
            link.require(QUOTA_WEIGHTS, "weights and priorities of tenants")
        setting = set_quota(link, request)
    _print_setting(setting, as_json=as_json)
    return 0 if setting.is_in_force else FAILED


def _say_only(found: list[broker_pb2.Quota], tenant: str, wanted: Wish) -> int:
    now = sentence(Setting(outcome="now", quota=found[0])) if found else f"{tenant} is not there"
    click.echo(f"dry run: would set {tenant} to {wanted}. {now}")
    return 0


def _print_setting(setting: Setting, *, as_json: bool) -> None:
    if as_json:
        quota = quota_document(setting.quota)
        print_document({"schema": SCHEMA, "outcome": setting.outcome, "quota": quota})
    else:
        click.echo(sentence(setting), err=not setting.is_in_force)
