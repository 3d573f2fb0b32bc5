"""aquactl's commands. Exit status: 0 ok, 1 failed, 2 usage, 3 the daemon can't be reached."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
from aqua_protos import broker_pb2
from click.shell_completion import get_completion_class

from aqua_daemon import __version__
from aqua_daemon.core.model import LeaseState
from aqua_daemon.ctl.bench_commands import bench_commands
from aqua_daemon.ctl.doctor.examining import examine
from aqua_daemon.ctl.doctor.findings import Level, worst
from aqua_daemon.ctl.doctor.report import diagnosed, report, report_document
from aqua_daemon.ctl.documents import (
    event_document,
    leases_document,
    status_document,
)
from aqua_daemon.ctl.drain_commands import drain_command, undrain_command
from aqua_daemon.ctl.following import Page, followed, last_events
from aqua_daemon.ctl.link import Refused, Unreachable, fetch_state
from aqua_daemon.ctl.options import (
    FAILED,
    UNREACHABLE,
    console,
    json_option,
    print_document,
    seconds_option,
    socket_option,
)
from aqua_daemon.ctl.quiet_commands import quiesce_command, run_command
from aqua_daemon.ctl.quota_commands import quota_commands
from aqua_daemon.ctl.screens import event_line, leases_table, state_name
from aqua_daemon.ctl.status_screen import status_screen

PROGRAM = "aquactl"
COMPLETE_VARIABLE = "_AQUACTL_COMPLETE"
STATES = [state.value for state in LeaseState]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="aquactl")
def commands() -> None:
    """Look at the AQUA node that runs here."""


@commands.command()
@socket_option
@seconds_option
@json_option
def status(path: Path, seconds: float, *, as_json: bool) -> None:
    """One screen: GPUs, tenants, last events, a verdict, and what to type next."""
    state = _ask(path, seconds)
    if as_json:
        print_document(status_document(state))
    else:
        screen = console()
        screen.print(status_screen(state, columns=screen.width, rows=screen.height))


@commands.command()
@socket_option
@seconds_option
@json_option
@click.option(
    "--state", "state_filter", type=click.Choice(STATES), help="Only leases in this state."
)
@click.option("--gpu", help="Only leases on this GPU.")
def leases(
    path: Path, seconds: float, state_filter: str | None, gpu: str | None, *, as_json: bool
) -> None:
    """Every lease that you may see: those of your tenant, or all if you are an admin."""
    chosen = [
        lease
        for lease in _ask(path, seconds).leases
        if state_filter in {None, state_name(lease.state)} and gpu in {None, lease.lender_gpu}
    ]
    if as_json:
        print_document(leases_document(chosen))
    elif chosen:
        screen = console()
        screen.print(leases_table(chosen, columns=screen.width), soft_wrap=True)
    else:
        console().print("no leases")


@commands.command()
@socket_option
@seconds_option
@json_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0, max=1000),
    default=20,
    show_default=True,
    help="How many of the last events to begin with.",
)
def events(path: Path, seconds: float, lines: int, *, follow: bool, as_json: bool) -> None:
    """What happened: to your tenant, or to all if you are an admin. With --json, one a line."""
    if not follow:
        _print_events(last_events(path, seconds=seconds), last=lines, as_json=as_json)
        return
    try:
        for number, found in enumerate(followed(path, seconds=seconds)):
            _print_events(found, last=None if number else lines, as_json=as_json)
    except KeyboardInterrupt:
        return  # the way to end it


@commands.command()
@socket_option
@seconds_option
@json_option
@click.option("--metrics", metavar="ADDRESS:PORT", help="Where the daemon's metrics should be.")
def doctor(path: Path, seconds: float, metrics: str | None, *, as_json: bool) -> int:
    """Whether this machine can serve, line by line, with the remedy; the daemon may be down."""
    findings = diagnosed(examine(path, seconds=seconds, metrics=metrics))
    if as_json:
        print_document(report_document(findings))
    else:
        console().print(report(findings))
    return FAILED if worst(findings) is Level.FAIL else 0


@commands.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """The script that completes aquactl's words in SHELL: eval "$(aquactl completion bash)"."""
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(found(commands, {}, PROGRAM, COMPLETE_VARIABLE).source())


for command in (
    quota_commands,
    quiesce_command,
    run_command,
    drain_command,
    undrain_command,
    bench_commands,
):
    commands.add_command(command)


def main() -> None:
    """Run aquactl, with an error as one line that says the cause and the fix."""
    sys.exit(
        _exit_status(
            lambda: commands(
                prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE, standalone_mode=False
            )
        )
    )


def _exit_status(run: Callable[[], object]) -> int:
    try:
        status = run()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return FAILED
    except Unreachable as error:
        click.echo(f"aquactl: {error}", err=True)
        return UNREACHABLE
    except Refused as error:
        click.echo(f"aquactl: {error}", err=True)
        return FAILED
    except (BrokenPipeError, SystemExit):  # `aquactl leases | head`; click makes it the latter
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest is for nobody
        return 0
    return status if isinstance(status, int) else 0


def _ask(path: Path, seconds: float) -> broker_pb2.GetStateReply:
    return fetch_state(path, seconds=seconds)


def _print_events(found: Page, *, last: int | None, as_json: bool) -> None:
    if found.remark:
        click.echo(f"aquactl: {found.remark}", err=True)
    skipped = 0 if last is None else max(0, len(found.events) - last)
    now = time.time()  # noqa: TID251 - people and other logs go by the wall
    for event in found.events[skipped:]:
        if as_json:
            click.echo(json.dumps(event_document(event, now=now)))
        else:
            click.echo(event_line(event, now=now))


if __name__ == "__main__":
    main()
