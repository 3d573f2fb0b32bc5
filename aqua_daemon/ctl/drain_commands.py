"""`aquactl drain` and `aquactl undrain`: GPUs that lend nothing until an admin says otherwise."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from aqua_protos import broker_pb2

from aqua_daemon.core.sizes import LONGEST_REVOKE_SECONDS
from aqua_daemon.ctl.draining import (
    Left,
    drain,
    followed,
    late_lines,
    plan,
    plan_document,
    undrain,
)
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

gpus_argument = click.argument("gpus", metavar="GPU...", nargs=-1)
all_option = click.option("--all", "is_all", is_flag=True, help="All GPUs of the node.")


@click.command("drain")
@gpus_argument
@all_option
@click.option(
    "--deadline",
    "deadline_seconds",
    type=click.FloatRange(min=0, max=LONGEST_REVOKE_SECONDS, min_open=True),
    help="Seconds that borrowers have; without, the standard deadlines.",
)
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@click.option("--no-wait", "is_hasty", is_flag=True, help="Do not follow until all is back.")
@dry_run_option
@socket_option
@seconds_option
@json_option
def drain_command(
    path: Path,
    seconds: float,
    gpus: tuple[str, ...],
    deadline_seconds: float | None,
    *,
    is_all: bool,
    is_sure: bool,
    is_hasty: bool,
    is_dry_run: bool,
    as_json: bool,
) -> int:
    """Take back all that is lent of each GPU, and lend nothing there until `aquactl undrain`.

    Who is hit and how long it takes is shown first. It is kept over restarts. Exit status 1 if
    something did not come back in time: it is named, and heals when its holder answers or ends.
    """
    _check_named(gpus, is_all=is_all)
    with opened(path, seconds=seconds) as link:
        reply = drain(link, gpus, deadline_seconds=deadline_seconds, is_dry_run=True)
        if not as_json:
            console().print(plan(reply), soft_wrap=True)
        if not is_dry_run:
            if sys.stdin.isatty() and not is_sure:
                click.confirm(f"Drain {', '.join(reply.gpus)}?", abort=True, err=True)
            reply = drain(link, gpus, deadline_seconds=deadline_seconds, is_dry_run=False)
    if is_dry_run and not as_json:
        click.echo("dry run: nothing has changed")
    left = None if is_dry_run or is_hasty else _follow(path, reply, seconds, is_silent=as_json)
    if as_json:
        print_document(plan_document(reply, left))
    return 0 if left is None or left.is_clean else FAILED


@click.command("undrain")
@gpus_argument
@all_option
@dry_run_option
@socket_option
@seconds_option
def undrain_command(
    path: Path, seconds: float, gpus: tuple[str, ...], *, is_all: bool, is_dry_run: bool
) -> None:
    """Let each GPU be lent again, also one that rests. What was asked back stays asked back."""
    _check_named(gpus, is_all=is_all)
    if is_dry_run:
        click.echo(f"dry run: would undrain {', '.join(gpus) or 'all GPUs'}")
        return
    with opened(path, seconds=seconds) as link:
        drained = undrain(link, gpus)
    click.echo(f"{', '.join(drained)}: lent again" if drained else "none of them was drained")


def _check_named(gpus: tuple[str, ...], *, is_all: bool) -> None:
    if bool(gpus) == is_all:
        raise click.UsageError("name each GPU as `aquactl status` shows it, or give --all")


def _follow(path: Path, reply: broker_pb2.DrainReply, seconds: float, *, is_silent: bool) -> Left:
    """Tell what is left until nothing comes back any more; then what is late."""
    left = Left(is_known=False)
    try:
        for left in followed(path, reply.gpus, seconds=seconds):
            if left.remark:
                click.echo(f"aquactl: {left.remark}", err=True)
            elif not is_silent:
                click.echo(f"{', '.join(reply.gpus)}: {left}")
    except KeyboardInterrupt:
        click.echo("aquactl: it goes on, and stays drained; see aquactl status", err=True)
    for line in late_lines(left):
        click.echo(f"aquactl: {line}", err=True)
    return left
