"""The probe, rehearsed on a made-up driver: it answers, resumes, and outlives what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.gpu.probe import table
from tests.gpu.probe.actors import Actor, Ended, Refused, Silent
from tests.gpu.probe.names import KINDS, LEGACY, VMM
from tests.gpu.probe.results import Results
from tests.gpu.probe.running import ANSWERED, CRASHED, TIMED_OUT, Record, run_step, why_not_here
from tests.gpu.probe.steps import LONGEST_SECONDS, STEPS
from tests.nodes import REPOSITORY, environment, short_directory, wait_until

MIB = 2**20
FAULTY = "tests.gpu.faulty_step"


@pytest.fixture
def node() -> Iterator[FakeCudaNode]:
    """One GPU, as most machines that the probe is run on have; every user may use it."""
    before = os.umask(0)
    with short_directory() as directory:
        directory.chmod(0o777)
        yield fake_cuda_node(directory / "node", gpus=1)
    os.umask(before)


@pytest.fixture
def on_node(node: FakeCudaNode, monkeypatch: pytest.MonkeyPatch) -> FakeCudaNode:
    """This process's children are processes of the node."""
    for name, value in node.environment().items():
        monkeypatch.setenv(name, value)
    return node


def probe(variables: dict[str, str], *words: str) -> str:
    """What `python -m tests.gpu.probe` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.probe", *words],
        cwd=REPOSITORY,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def steps_in(path: Path) -> dict[str, dict[str, object]]:
    steps: dict[str, dict[str, object]] = json.loads(path.read_text())["steps"]
    return steps


def answer_to(record: Record, question: str) -> dict[str, str]:
    (row,) = (row for row in record.rows if row["question"] == question)
    return row


@pytest.mark.limit(300)
def test_every_question_is_answered_on_a_made_up_driver(node: FakeCudaNode, tmp_path: Path) -> None:
    """Each step ends by itself with rows of the right form, and the table shows every one."""
    path = tmp_path / "answers.json"
    printed = probe(node.environment(), "--quick", "--json", str(path))
    records = Results(path).records
    assert list(records) == [step.name for step in STEPS]
    for step in STEPS:
        record = records[step.name]
        assert (step.name, record.outcome, record.last_words) == (step.name, ANSWERED, "")
        assert record.rows, step.name
        assert f"{step.name}: {step.question}" in printed
        for row in record.rows:
            answers = {name: text for name, text in row.items() if name != "question"}
            assert set(answers) in ({"answer"}, set(KINDS)), (step.name, row)
            assert all(answers.values()), row
    rules = records["opening"]
    assert answer_to(rules, "in the exporting process")[LEGACY] == "CUDA_ERROR_INVALID_CONTEXT"
    kept = answer_to(records["kept_handle"], "opened again after the free")
    assert kept[LEGACY].startswith("CUDA_ERROR"), "the made-up driver's handles end with the free"
    assert kept[VMM] == "reads the second's bytes", "a descriptor keeps the memory"
    mapping = answer_to(records["costs"], "of it: map, 2 MiB")
    assert (mapping[LEGACY], mapping[VMM][-1]) == ("is the opening itself", "s")
    stopped = {name for name, record in records.items() if "what ended" in str(record.rows)}
    assert stopped == set()


def test_a_second_call_goes_on_where_the_first_ended(node: FakeCudaNode, tmp_path: Path) -> None:
    """Steps that are done are shown and not asked again, until that is what is wanted."""
    path = tmp_path / "answers.json"
    words = ("--quick", "--json", str(path), "--step", "machine", "opening")
    probe(node.environment(), "--quick", "--json", str(path), "--step", "machine")
    assert list(steps_in(path)) == ["machine"]
    first = steps_in(path)["machine"]
    assert "machine: done before" in probe(node.environment(), *words)
    assert steps_in(path)["machine"] == first
    assert list(steps_in(path)) == ["machine", "opening"]
    assert "done before" not in probe(node.environment(), *words, "--again")


def test_without_a_device_it_says_why_it_was_not_run() -> None:
    """No driver, or none of its devices visible: one line, and no failure."""
    printed = probe(environment(CUDA_VISIBLE_DEVICES=""))
    assert printed.startswith("the probe was not run here: ")
    assert len(printed.splitlines()) == 1


def test_the_questions_can_be_listed_anywhere() -> None:
    """`--list` needs no device, and names every step."""
    printed = probe(environment(), "--list")
    assert [line.split()[0] for line in printed.splitlines()] == [step.name for step in STEPS]


def test_no_step_may_take_eight_minutes() -> None:
    """Whoever lends a machine for ten minutes at a time gets an answer to each question."""
    assert all(step.seconds <= LONGEST_SECONDS < 480 for step in STEPS)


@pytest.mark.parametrize(
    ("fault", "outcome", "last_words"),
    [
        ("crashes", CRASHED, "ended by SIGSEGV"),
        ("raises", CRASHED, "RuntimeError: CUDA said something unheard of"),
        ("half a line", ANSWERED, ""),
    ],
)
def test_what_a_step_knew_before_it_went_wrong_is_kept(
    fault: str, outcome: str, last_words: str
) -> None:
    """A crash is an answer, and so is what was found out before it."""
    record = run_step(fault, seconds=30.0, quick=True, module=FAULTY)
    assert (record.outcome, record.last_words) == (outcome, last_words)
    assert record.rows == [{"question": "what is known before", "legacy": "this", "vmm": "that"}]
    assert record.figures == {"numbers": [1, 2]}


def test_a_step_that_hangs_is_ended_with_its_children() -> None:
    """The deadline ends its whole process group, and the next step can run."""
    record = run_step("hangs", seconds=2.0, quick=True, module=FAULTY)
    assert (record.outcome, record.last_words) == (TIMED_OUT, "ended by SIGKILL")
    child = int(answer_to(record, "the child's number")["answer"])
    wait_until(lambda: not Path(f"/proc/{child}/cwd").exists(), what="the child is gone")


def test_a_machine_whose_driver_answers_can_be_asked(on_node: FakeCudaNode) -> None:
    """The check before the steps says nothing where there is a device, and why where not."""
    assert why_not_here() == ""
    on_node.fail("cuDeviceGetCount", 999)
    assert "CUDA_ERROR_UNKNOWN" in why_not_here()


def test_what_becomes_of_a_process_is_an_answer(on_node: FakeCudaNode) -> None:
    """Refused by CUDA, silent, or gone: three different answers, none of them an accident."""
    assert on_node.allocations() == []
    with Actor() as actor:
        with pytest.raises(Refused, match="CUDA_ERROR"):
            actor.ask("allocate", kind=LEGACY, nbytes=2 * MIB)
        actor.ask("context", number=0)
        slab = actor.ask("allocate", kind=LEGACY, nbytes=2 * MIB).number
        with pytest.raises(Refused, match="CUDA_ERROR_INVALID_CONTEXT"):
            actor.open(actor.export(slab, kind=LEGACY, nbytes=2 * MIB))
        os.kill(actor.pid, signal.SIGSTOP)
        with pytest.raises(Silent, match=r"no answer in 0\.1 s"):
            actor.ask("pid", seconds=0.1)
        actor.kill()
        with pytest.raises(Ended, match="SIGKILL"):
            actor.ask("pid")


def test_a_rehearsal_does_not_stand_for_the_real_thing(tmp_path: Path) -> None:
    """What small sizes answered is asked again with the real ones, and never the other way."""
    results = Results(tmp_path / "answers.json")
    results.add("costs", Record(outcome=ANSWERED, seconds=1.0, quick=True))
    again = Results(tmp_path / "answers.json")
    assert again.has("costs", quick=True)
    assert not again.has("costs", quick=False)
    again.add("costs", Record(outcome=TIMED_OUT, seconds=1.0, quick=False))
    assert again.has("costs", quick=False)
    assert again.has("costs", quick=True)


@pytest.mark.parametrize("text", ["", "[]", '{"steps": 3}', '{"steps": {"x": {"y": 1}}}'])
def test_a_file_of_another_kind_is_not_overwritten(tmp_path: Path, text: str) -> None:
    """It is named, and stays as it is."""
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json"):
        Results(path)
    assert path.read_text() == text


def test_the_table_shows_both_kinds_side_by_side() -> None:
    """Long answers are folded within their column; what went wrong stands at the step."""
    row = {"question": "a question", "legacy": "a long answer " * 4, "vmm": "short"}
    record = Record(
        outcome=CRASHED,
        seconds=3.2,
        quick=False,
        rows=[row, {"question": "another", "answer": "one for both"}],
        last_words="ended by SIGSEGV",
    )
    lines = list(table.lines({"one": record}, {"one": "what?", "two": "never asked"}))
    assert lines[1] == "one: what? (3 s, crashed: ended by SIGSEGV)"
    assert [part.strip() for part in lines[2].split("|")] == ["", "legacy", "vmm"]
    assert [part.strip() for part in lines[3].split("|")][::2] == ["a question", "short"]
    assert lines[4].strip().startswith("|")
    assert "one for both" in lines[-1]
    assert not any("never asked" in line for line in lines)


@pytest.mark.limit(580)
def test_every_question_is_answered_here(cuda_device: int, tmp_path: Path) -> None:
    """On a real device no step of the rehearsal crashes the probe or hangs it."""
    assert cuda_device >= 0
    path = tmp_path / "answers.json"
    printed = probe(environment(), "--quick", "--json", str(path))
    crashed = {
        name: record.last_words
        for name, record in Results(path).records.items()
        if record.outcome != ANSWERED
    }
    assert crashed == {}, printed
