"""`aquactl quiesce` and `aquactl run`: a GPU that is left alone while something starts there."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import click

from aqua_daemon.core.sizes import LONGEST_QUIESCE_SECONDS
from aqua_daemon.ctl.child import await_end, exit_status, started
from aqua_daemon.ctl.link import Unreachable
from aqua_daemon.ctl.options import dry_run_option, seconds_option, socket_option
from aqua_daemon.ctl.quiet import quiet

NOT_STARTED = 127  # as shells say it

quiet_seconds_option = click.option(
    "--seconds",
    "quiet_seconds",
    type=click.FloatRange(min=1, max=LONGEST_QUIESCE_SECONDS),
    default=LONGEST_QUIESCE_SECONDS,
    show_default=True,
    help="Leave it alone for so long at most.",
)


@click.command("quiesce")
@click.argument("gpu")
@quiet_seconds_option
@dry_run_option
@socket_option
@seconds_option
def quiesce_command(
    path: Path, seconds: float, gpu: str, quiet_seconds: float, *, is_dry_run: bool
) -> None:
    """Leave GPU alone until Ctrl-C: nothing is lent, taken back for the reserve, or freed there.

    For an engine that measures its memory as it starts. What an owner reclaims is freed all the
    same.
    """
    if is_dry_run:
        click.echo(f"dry run: would leave {gpu} alone for {quiet_seconds:g} s at most")
        return
    try:
        with quiet(path, gpu, seconds=quiet_seconds, timeout=seconds) as lasts:
            click.echo(f"{gpu} is left alone for {lasts:g} s; Ctrl-C ends it")
            threading.Event().wait(lasts)
    except KeyboardInterrupt:
        pass  # the way to end it
    click.echo(f"{gpu} goes on")


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option("--gpu", required=True, help="Where the command will use memory.")
@click.option(
    "--settle",
    "settle_seconds",
    type=click.FloatRange(min=0, max=LONGEST_QUIESCE_SECONDS),
    default=60.0,
    show_default=True,
    help="Seconds after its start in which the command has taken what it needs.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@dry_run_option
@socket_option
@seconds_option
def run_command(
    path: Path,
    seconds: float,
    gpu: str,
    settle_seconds: float,
    command: tuple[str, ...],
    *,
    is_dry_run: bool,
) -> int:
    """Take back what is lent of the GPU, run COMMAND, and leave the GPU alone while it starts.

    Write `--` before COMMAND.
    Signals are passed on to it, its exit status is returned. Without a daemon it runs all the same.
    """
    if is_dry_run:
        click.echo(
            f"dry run: would take back what is lent of {gpu}, leave it alone for "
            f"{settle_seconds:g} s and run it"
        )
        return 0
    with ExitStack() as ours, ExitStack() as quietness:
        if settle_seconds:
            try:
                quietness.enter_context(
                    quiet(path, gpu, seconds=settle_seconds, timeout=seconds, takes_back=True)
                )
            except Unreachable as error:  # a server must start without us
                click.echo(f"aquactl: {error}; {command[0]} is started all the same", err=True)
        try:
            child = ours.enter_context(started(command))
        except OSError as error:
            click.echo(f"aquactl: {command[0]}: {error.strerror}", err=True)
            return NOT_STARTED
        await_end(child, at_most_seconds=settle_seconds)
        quietness.close()
        return exit_status(child)
