"""What is run where there is a GPU: everything, within its time, one call after another.

Rehearsed with steps that go wrong and with tests that need no GPU.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import require_module
from tests.gpu import __main__ as program
from tests.gpu import checking, readiness
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.results import Results
from tests.gpu.probe.running import ANSWERED, CRASHED, CUT, TIMED_OUT, Record, run_step
from tests.gpu.probe.steps import STEPS
from tests.gpu.tasks import (
    BENCH,
    BENCHMARKS,
    CHECK,
    CHECKS,
    LONGEST_SECONDS,
    MODULES,
    TASKS,
    Task,
)
from tests.nodes import REPOSITORY, environment

FAULTY = "tests.gpu.faulty_step"


def task(name: str, *, kind: str = CHECK, seconds: float = 20.0, alone: bool = True) -> Task:
    return Task(name=name, kind=kind, question="what?", seconds=seconds, alone=alone)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks are named by how they go wrong."""
    monkeypatch.setitem(MODULES, CHECK, FAULTY)
    monkeypatch.setitem(MODULES, BENCH, FAULTY)


def test_every_check_and_every_question_is_a_task() -> None:
    """Once, as every benchmark is, and none may take more than five minutes."""
    wanted = [one.name for part in (CHECKS, STEPS, BENCHMARKS) for one in part]
    assert sorted(one.name for one in TASKS) == sorted(wanted)
    assert all(one.seconds <= LONGEST_SECONDS for one in TASKS)


def test_every_file_with_tests_for_a_gpu_is_in_a_check() -> None:
    """But for the rehearsal of the probe, which is asked itself."""
    needles = ("marks=pytest.mark.gpu", "cuda_device", "place: Place")
    files = [
        str(path.relative_to(REPOSITORY))
        for folder in ("contract", "cuda", "gpu")
        for path in sorted((REPOSITORY / "tests" / folder).glob("test_*.py"))
        if any(needle in path.read_text() for needle in needles)
    ]
    mine = {str(Path(__file__).relative_to(REPOSITORY)), "tests/gpu/test_probe.py"}
    assert {word for one in CHECKS for word in one.words if word.endswith(".py")} == {*files} - mine


@pytest.mark.usefixtures("faulty")
def test_tasks_end_by_their_deadlines_and_are_kept(tmp_path: Path) -> None:
    """Whatever each comes to; neighbours that may are run together, and all leave their words."""
    path = tmp_path / "answers.json"
    tasks = [
        task("half a line", alone=False),
        task("hangs", alone=False, seconds=3.0),
        task("raises"),
    ]
    program.run(tasks, Results(path), logs=path, ends_at=time.monotonic() + 100)
    outcomes = {name: record.outcome for name, record in Results(path).records.items()}
    assert outcomes == {"half a line": ANSWERED, "hangs": TIMED_OUT, "raises": CRASHED}
    said = (tmp_path / "answers.json.logs" / "raises.log").read_text()
    assert "CUDA said something unheard of" in said


@pytest.mark.usefixtures("faulty")
def test_what_the_budget_ended_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no answer; what came before it has, and what comes after is not begun."""
    monkeypatch.setattr(program, "LEAST_SECONDS", 1.0)
    path = tmp_path / "answers.json"
    tasks = [task("half a line"), task("hangs", seconds=100.0), task("raises")]
    program.run(tasks, Results(path), logs=None, ends_at=time.monotonic() + 6)
    assert list(Results(path).records) == ["half a line"]


@pytest.mark.usefixtures("faulty")
def test_a_benchmark_that_is_cut_short_goes_on_where_it_was(tmp_path: Path) -> None:
    """Its rows are kept, and asked of the next call no more; then it is done."""
    path = tmp_path / "answers.json"
    tasks = [task("takes long", kind=BENCH, seconds=3.0)]
    for outcome, is_done, rows in ((CUT, False, ["first"]), (ANSWERED, True, ["first", "second"])):
        program.run(tasks, Results(path), logs=None, ends_at=time.monotonic() + 100)
        found = Results(path)
        record = found.records["takes long"]
        assert (record.outcome, found.has("takes long", quick=False)) == (outcome, is_done)
        questions = [row["question"] for row in record.rows]
        assert questions == ["what is known before", *rows]
        assert record.figures == {"numbers": [1, 2]}


@pytest.mark.usefixtures("faulty")
def test_what_fails_of_a_benchmark_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    """It counts as failed all the same."""
    path = tmp_path / "answers.json"
    program.run(
        [task("fails in part", kind=BENCH)],
        Results(path),
        logs=None,
        ends_at=time.monotonic() + 100,
    )
    record = Results(path).records["fails in part"]
    rows = {row["question"]: row.get("answer", "") for row in record.rows}
    assert rows["first"] == (
        "failed: ValueError: invalid literal for int() with base 10: 'no room for the first'"
    )
    assert (record.outcome, rows["second"]) == (CRASHED, "there is")


@pytest.mark.limit(120)
def test_a_check_names_what_failed_and_what_did_not_run(tmp_path: Path) -> None:
    """A failure fails it; both are told."""
    made = tmp_path / "test_made.py"
    made.write_text(
        "import pytest\n"
        "def test_right(): pass\n"
        "def test_wrong(): assert 2 == 3\n"
        "def test_warned():\n"
        "    import warnings\n"
        "    warnings.warn('changes some day', DeprecationWarning)\n"
        "def test_told():\n"
        "    import warnings, aqua_client\n"
        "    warnings.warn('no daemon', aqua_client.AquaWarning)\n"
        "def test_skipped(): pytest.skip('no device')\n"
    )
    out = io.StringIO()
    assert checking.run(("--rootdir", str(tmp_path), str(made)), Findings(out)) == 1
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    rows = {row["row"]["question"]: row["row"]["answer"] for row in found if "row" in row}
    assert rows["passed"] == "2 of 5"
    assert rows["test_wrong"].startswith("failure: assert 2 == 3")
    so_far = [row["figures"]["so far"] for row in found if "so far" in row.get("figures", {})]
    assert so_far[-1] == {
        "test_right": "passed",
        "test_wrong": "failed",
        "test_warned": "passed",
        "test_told": "failed",
        "test_skipped": "skipped",
    }
    assert "test_warned" not in rows
    assert "no daemon" in rows["test_told"]
    assert rows["test_skipped"].startswith("skipped: no device")


@pytest.mark.limit(120)
@pytest.mark.parametrize("name", ["paging-legacy", "blocks-vmm"])
def test_a_benchmark_is_rehearsed_on_stand_in_gpus(name: str) -> None:
    """Every size has its row, and ours stands beside the copies that it competes with."""
    record = run_step(name, seconds=100.0, quick=True, module=MODULES[BENCH])
    assert (record.outcome, record.last_words) == (ANSWERED, "")
    rivals = ("offload", "fetch", "copy on the device", "to pageable")
    pooled = ("store", "load", "a copy each, out", "index_select and a copy, out", "in one piece")
    told = [
        row["answer"] for row in record.rows if "ceiling" not in row["answer"] + row["question"]
    ]
    assert len(told) == 2
    for answer in told:
        for word in rivals if name.startswith("paging") else pooled:
            assert f"{word} " in answer
    beside = [row for row in record.rows if row["answer"] not in told]
    assert len(beside) == 4
    assert sum("*paced* to 375 GB/s" in row["question"] for row in beside) == 2
    assert_machine(record)


@pytest.mark.limit(180)
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("prompt-legacy", 8),
        ("longest-legacy", 4),
        ("burst50-legacy", 5),
        ("trace2x-legacy", 5),
        ("adapters-legacy", 4),
    ],
)
def test_what_a_server_gains_is_rehearsed_on_stand_in_gpus(name: str, rows: int) -> None:
    """Each way has its row, and leases another with paced copies."""
    record = run_step(name, seconds=170.0, quick=True, module=MODULES[BENCH])
    assert (record.outcome, record.last_words) == (ANSWERED, "")
    assert len(record.rows) == rows
    assert any("*paced* to 375 GB/s" in row["question"] for row in record.rows)
    assert_machine(record)


def assert_machine(record: Record) -> None:
    """Without it figures say nothing."""
    machine = record.figures["machine"]
    assert isinstance(machine, dict)
    assert {"date", "gpu", "driver", "python", "packages"} <= machine.keys()


@pytest.mark.limit(120)
@pytest.mark.parametrize(
    ("name", "questions"),
    [
        ("both-legacy", ("2 x 1 MiB, ours", "2 x 1 MiB, plain copies")),
        (
            "product-legacy",
            (
                "the product beside parking",
                "parking beside the product",
                "the product beside plain copies",
                "plain copies beside the product",
            ),
        ),
        (
            "lender-legacy",
            (
                "a product alone",
                "a product beside a tenant that does nothing",
                "a product while slabs are scrubbed",
                "a product while slabs are read and written",
            ),
        ),
        (
            "returns-legacy",
            (
                *(
                    f"{nbytes} MiB of `{keep}` to its owner"
                    for nbytes in (8, 32)
                    for keep in ("store", "cache")
                ),
                "a tenant is killed",
                *(f"a lease of {nbytes} MiB" for nbytes in (4, 8, 16, 32)),
                "a daemon is killed",
            ),
        ),
    ],
)
def test_what_is_measured_beside_something_else_is_rehearsed(
    name: str, questions: tuple[str, ...]
) -> None:
    """Each has its row, and its figures; nothing overlaps on stand-in GPUs."""
    record = run_step(name, seconds=100.0, quick=True, module=MODULES[BENCH])
    assert (record.outcome, record.last_words) == (ANSWERED, "")
    assert tuple(row["question"] for row in record.rows) == questions
    assert_machine(record)


def test_without_a_gpu_it_says_why_it_was_not_run() -> None:
    """One line that names what is missing, and no failure."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu"],
        cwd=REPOSITORY,
        env=environment(CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith("not run here: ")


def test_what_is_missing_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package, a torch without CUDA, no device: each has its own remedy."""
    monkeypatch.setattr(readiness, "_torch_without_cuda", lambda: "")
    for name, package in readiness.PACKAGES.items():
        with monkeypatch.context() as changed:
            changed.setitem(sys.modules, name, None)
            assert readiness.missing().startswith(f"{package} is not installed")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    require_module("cuda.bindings.driver", "cuda-bindings")
    assert readiness.missing().startswith("there is no CUDA device")
    monkeypatch.undo()
    import torch

    if not torch.backends.cuda.is_built():
        assert "was built without CUDA" in readiness.missing()
