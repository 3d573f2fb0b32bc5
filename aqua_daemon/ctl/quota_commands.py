"""`aquactl quota get` and `aquactl quota set`."""

from __future__ import annotations

from pathlib import Path

import click
from aqua_protos import broker_pb2

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
    fetch_quotas,
    quota_document,
    quotas_table,
    sentence,
    set_quota,
    wanted_bytes,
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
        found = fetch_quotas(link, tenant)
    if as_json:
        print_document({"schema": SCHEMA, "quotas": [quota_document(one) for one in found]})
    elif found:
        console().print(quotas_table(found))
    if tenant is not None and not found:
        click.echo(f"aquactl: {tenant} has no session, no lease and no quota set", err=True)
        return FAILED
    return 0


@quota_commands.command("set")
@click.argument("tenant")
@click.argument("quota")
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
    quota: str,
    revision: int | None,
    *,
    is_dry_run: bool,
    as_json: bool,
) -> int:
    """Let TENANT hold QUOTA (such as 4GiB, or `default`). It is kept over restarts.

    Below what TENANT holds nothing is taken back: it gets nothing more until it gave back.
    """
    try:
        nbytes = wanted_bytes(quota)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with opened(path, seconds=seconds) as link:
        if is_dry_run:
            return _say_only(fetch_quotas(link, tenant), tenant, quota)
        setting = set_quota(link, tenant, nbytes, revision)
    _print_setting(setting, as_json=as_json)
    return 0 if setting.is_in_force else FAILED


def _say_only(found: list[broker_pb2.Quota], tenant: str, wanted: str) -> int:
    now = sentence(Setting(outcome="now", quota=found[0])) if found else f"{tenant} is not there"
    click.echo(f"dry run: would set {tenant} to {wanted}. {now}")
    return 0


def _print_setting(setting: Setting, *, as_json: bool) -> None:
    if as_json:
        quota = quota_document(setting.quota)
        print_document({"schema": SCHEMA, "outcome": setting.outcome, "quota": quota})
    else:
        click.echo(sentence(setting), err=not setting.is_in_force)
