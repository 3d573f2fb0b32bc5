"""The benchmark of long prompts measures what is missing, keeps it, and answers are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.long_prompt.__main__ import main
from tests.benchmarks.long_prompt.shapes import TOY
from tests.benchmarks.long_prompt.ways import LEASES, RESIDENT, WHOLE_LAYERS

WORDS = ("--shape", "toy", "--rounds", "1", "--prompts")


def test_rows_are_kept_and_not_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of its caches once; a second call adds the lengths that are new."""
    path = tmp_path / "long_prompt.json"
    main(["--json", str(path), *WORDS, "80"])
    first = json.loads(path.read_text())["rows"]
    assert [row["way"] for row in first.values()] == [LEASES, RESIDENT, WHOLE_LAYERS]
    assert len({tuple(row["answer"]) for row in first.values()}) == 1
    ours, *others = first.values()
    assert ours["tier"] == "peer"
    assert 0 < ours["out_bytes"] <= ours["kv_bytes"] == (80 + 15) * TOY.token_bytes
    assert ours["in_bytes"] > ours["kv_bytes"]
    assert ours["resident_bytes"] < ours["kv_bytes"]
    assert {row["out_bytes"] for row in others} == {0}
    main(["--json", str(path), *WORDS, "80", "90"])
    again = json.loads(path.read_text())["rows"]
    assert len(again) == 6
    assert {name: again[name] for name in first} == first
    assert capsys.readouterr().out.count("the same") == 9
    main(["--json", str(path), *WORDS, "90", "--paced", "375"])
    *before, paced = json.loads(path.read_text())["rows"].values()
    assert before == [*again.values()]
    assert paced["way"] == f"{LEASES}, *paced* to 375 GB/s"
    assert paced["answer"] == before[-1]["answer"]
