"""What the README shows of continuous batching runs as it stands there."""

from __future__ import annotations

import re

import pytest

from tests.integrations.readme import python_blocks
from tests.nodes import Node


def test_the_readmes_example_runs(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On leases, and both requests are answered in full."""
    (block,) = python_blocks("integrations.transformers import attach")
    monkeypatch.setenv("AQUA_SOCKET", node.socket)
    monkeypatch.setenv("AQUA_HOME_GPU", "SHM-0")
    known: dict[str, object] = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), known)  # noqa: S102 - ours
    told = capsys.readouterr().out
    assert len(re.findall(r"\d+(?=[,\]])", told.partition("{")[0])) == 2 * 20
