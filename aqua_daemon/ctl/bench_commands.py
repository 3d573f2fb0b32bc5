"""`aquactl bench links`: how fast the GPUs of the node reach each other."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from aqua_protos import broker_pb2

from aqua_daemon.config_words import ConfigError, parse_bytes
from aqua_daemon.core.sizes import LARGEST_PROBE_BYTES, SMALLEST_PROBE_BYTES
from aqua_daemon.ctl.bench import document, measure, tables
from aqua_daemon.ctl.link import Refused, opened
from aqua_daemon.ctl.options import (
    FAILED,
    console,
    json_option,
    print_document,
    seconds_option,
    socket_option,
)


@click.group("bench")
def bench_commands() -> None:
    """Measure what the node's hardware can do."""


@bench_commands.command("links")
@click.option("--gpu", "gpus", multiple=True, help="Only links between these; without, all.")
@click.option("--sizes", help="Of the copies, such as 64KiB,64MiB; without, two usual ones.")
@socket_option
@seconds_option
@json_option
def links_command(
    path: Path, seconds: float, gpus: tuple[str, ...], sizes: str | None, *, as_json: bool
) -> int:
    """Measure each pair of GPUs, both ways, and host memory; rows from, columns to. For admins.

    The keepers copy, with memory of their own that is gone afterwards. What is measured is what
    lenders are chosen by from then on. A link that can't be measured now says why.

    Keepers map each other's memory meanwhile: a GPU or link that fails just then may end the
    keepers of both ends, and what they lent is lost. With a GPU in doubt drain it, and those that
    it is measured with, first.
    """
    wanted = _sizes(sizes)
    with opened(path, seconds=seconds) as link:
        if not gpus:
            state = link.call("GetState", broker_pb2.GetStateRequest(), broker_pb2.GetStateReply)
            gpus = tuple(gpu.gpu for gpu in state.gpus)
        if not gpus:
            raise Refused("the daemon has no GPUs: see `aquactl status`")
        gpus = tuple(dict.fromkeys(gpus))
        if sys.stderr.isatty():
            click.echo(f"measuring the links of {len(gpus)} GPUs, one after the other", err=True)
        bench = measure(link, gpus, wanted)
    if as_json:
        print_document(document(bench))
    else:
        console().print(tables(bench), soft_wrap=True)
    return FAILED if bench.is_empty else 0


def _sizes(words: str | None) -> list[int]:
    try:
        return [
            parse_bytes("--sizes", word, SMALLEST_PROBE_BYTES, LARGEST_PROBE_BYTES)
            for word in (words.split(",") if words else ())
        ]
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
