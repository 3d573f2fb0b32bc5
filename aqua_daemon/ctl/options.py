"""What several commands share: their options, and how they print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click
from rich.console import Console

FAILED, UNREACHABLE = 1, 3
PLAIN_COLUMNS = 160  # a pipe has no width; nothing may be cut there

socket_option = click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path),
    default=Path("/run/aqua/aqua.sock"),
    envvar="AQUA_SOCKET",
    show_default=True,
    help="The daemon's socket.",
)
seconds_option = click.option(
    "--timeout",
    "seconds",
    type=click.FloatRange(min=0.1, max=60),
    default=3.0,
    show_default=True,
    help="Seconds to wait for an answer.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a machine.")
dry_run_option = click.option(
    "--dry-run", "is_dry_run", is_flag=True, help="Say what would be done, and do nothing."
)


def print_document(document: Mapping[str, object]) -> None:
    """JSON, for machines."""
    click.echo(json.dumps(document, indent=2))


def console() -> Console:
    """Rich leaves colours out by itself under NO_COLOR and when not on a terminal."""
    found = Console(highlight=False, soft_wrap=False)
    if not found.is_terminal:
        found.width = max(found.width, PLAIN_COLUMNS)
    return found
