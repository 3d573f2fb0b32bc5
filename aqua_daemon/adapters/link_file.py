"""What was measured of links, in a file of its own, so that a restart forgets none of it.

Covers reading and replacing it. Unlike settings it can be had again at any time: a file that can't be
read or written costs a line in the log, and no start and no call. An older release does not look at it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from aqua_daemon.adapters.settings_file import replace_file
from aqua_daemon.adapters.wire import checks
from aqua_daemon.core.errors import InvalidRequest
from aqua_daemon.core.model import GpuPair, LinkRate
from aqua_daemon.core.node_snapshot import LinkSnapshot, NodeSnapshot

SCHEMA = 1
NAME = "links.json"
_MOST_LINKS = 4096
_LARGEST_BYTES = 2**20
_LEAST_RATE, _LARGEST_RATE = 1.0, 1e18  # bytes a second: what no link is
_LARGEST_LATENCY_SECONDS = 3600.0

_log = logging.getLogger("aqua.links")


class LinkFile:
    """The file of one daemon."""

    def __init__(self, path: Path) -> None:
        """Touches nothing yet."""
        self._path = path
        self._turn = asyncio.Lock()  # of those who write: the last to read is the last to write

    def read(self) -> dict[GpuPair, LinkRate]:
        """What was kept last; nothing where nothing was, or it makes no sense."""
        try:
            return links_of(self._path.read_bytes()[: _LARGEST_BYTES + 1])
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, InvalidRequest, RecursionError) as error:
            _log.warning("%s: measured links are forgotten: %s", self._path, error)
            return {}

    async def keep(self, read_books: Callable[[], NodeSnapshot]) -> None:
        """Replace the file by what *read_books* tells when it is this call's turn."""
        async with self._turn:
            content = content_of(read_books().links)
            try:
                await asyncio.to_thread(replace_file, self._path, content)
            except OSError as error:
                _log.warning("%s: measured links are not kept: %s", self._path, error)


def content_of(links: Iterable[LinkSnapshot]) -> bytes:
    """The file's bytes."""
    entries = [
        {
            "source": one.pair.source,
            "target": one.pair.target,
            "bytes_per_second": one.rate.bytes_per_second,
            "latency_seconds": one.rate.latency_seconds,
        }
        for one in links
    ]
    return (json.dumps({"schema": SCHEMA, "links": entries}, indent=1) + "\n").encode()


def links_of(content: bytes) -> dict[GpuPair, LinkRate]:
    """What the file's bytes hold.

    Raises:
        ValueError: anything else than what `content_of` writes.
        RecursionError: the same, nested too deeply to be read.
        InvalidRequest: an end that is no GPU's name.
    """
    found = json.loads(content)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ValueError(f"it is not of schema {SCHEMA}")
    listed = found.get("links")
    if not isinstance(listed, list) or len(listed) > _MOST_LINKS:
        raise ValueError("it has no links, or too many")
    return dict(_link(one) for one in listed)


def _link(entry: object) -> tuple[GpuPair, LinkRate]:
    if not isinstance(entry, dict):
        raise ValueError("a link is no object")  # noqa: TRY004 - the file's fault, not a caller's
    source, target = entry.get("source"), entry.get("target")
    if source == target:
        raise ValueError(f"a link leads from {source!r} to itself")
    bytes_per_second = _figure(entry.get("bytes_per_second"), _LEAST_RATE, _LARGEST_RATE)
    latency_seconds = _figure(entry.get("latency_seconds"), 0.0, _LARGEST_LATENCY_SECONDS)
    pair = GpuPair(
        source=checks.gpu("source", source if isinstance(source, str) else ""),
        target=checks.gpu("target", target if isinstance(target, str) else ""),
    )
    return pair, LinkRate(latency_seconds=latency_seconds, bytes_per_second=bytes_per_second)


def _figure(value: object, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"a link has {str(value)[:32]} as a figure")
    return float(value)
