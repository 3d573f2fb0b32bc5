"""What was measured is kept over restarts, and a file that makes no sense costs nothing but itself."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from aqua_daemon.adapters.link_file import LinkFile, content_of
from tests.daemon.samples import SNAPSHOT

LINK = SNAPSHOT.links[0]
ENTRY = json.loads(content_of(SNAPSHOT.links))["links"][0]


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    """Figures, not verdicts: who is slow is worked out anew."""
    file = LinkFile(tmp_path / "state" / "links.json")
    assert file.read() == {}
    asyncio.run(file.keep(lambda: SNAPSHOT))
    assert file.read() == {LINK.pair: LINK.rate}
    asyncio.run(file.keep(lambda: replace(SNAPSHOT, links=())))
    assert file.read() == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"schema": 2, "links": []}',
        b'{"schema": 1}',
        b"[" * 2**16,  # deeper than a parser goes
        *(
            json.dumps({"schema": 1, "links": [entry]}).encode()
            for entry in (
                7,
                {},
                {**ENTRY, "bytes_per_second": 0},
                {**ENTRY, "bytes_per_second": -1},
                {**ENTRY, "bytes_per_second": True},
                {**ENTRY, "bytes_per_second": "1"},
                {**ENTRY, "bytes_per_second": float("inf")},
                {**ENTRY, "bytes_per_second": 10**400},
                {**ENTRY, "bytes_per_second": 1.79e308},
                {**ENTRY, "bytes_per_second": 5e-324},
                {**ENTRY, "latency_seconds": float("nan")},
                {**ENTRY, "latency_seconds": 1e9},
                {**ENTRY, "source": ""},
                {**ENTRY, "source": ENTRY["target"]},
                {**ENTRY, "target": "a b"},
                {**ENTRY, "target": None},
            )
        ),
    ],
)
def test_a_broken_file_is_forgotten_and_said(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A start goes on as if nothing had been measured: it can be had again."""
    path = tmp_path / "links.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="aqua.links"):
        assert LinkFile(path).read() == {}
    assert "measured links are forgotten" in caplog.text


def test_a_disk_that_refuses_fails_no_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The figures are in force all the same, and end with the daemon."""
    (tmp_path / "links.json").mkdir()
    with caplog.at_level(logging.WARNING, logger="aqua.links"):
        asyncio.run(LinkFile(tmp_path / "links.json").keep(lambda: SNAPSHOT))
    assert "measured links are not kept" in caplog.text
