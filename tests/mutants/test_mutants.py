"""Every mutant applies to the code as it is, and cheap ones are caught; all are tried elsewhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import ROOT, DoesNotApply, Mutant, apply, copy_tree
from tests.mutants.trying import Tried, try_all, try_without

# A rule of the broker, and two that many tests lean on.
_CHEAP = (
    "a slab is freed at the deadline",
    "bytes that are promised are free",
    "hysteresis is removed",
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_a_mutant_applies(mutant: Mutant) -> None:
    """Its text is there exactly once, what comes of it is Python, and its tests exist."""
    source = mutant.source()
    ast.parse(source)
    assert mutant.new != mutant.old
    for test in mutant.tests:
        path, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / path).read_text(), test


def test_no_mutant_names_what_is_not_there(tmp_path: Path) -> None:
    """A module that can't be imported fails every test, whatever its fault."""
    for at, mutant in enumerate(MUTANTS):
        (tmp_path / f"mutant_{at}.py").write_text(mutant.source())
    rules = ("--isolated", "--no-cache", "--select", "F821")
    subprocess.run([sys.executable, "-m", "ruff", "check", *rules, tmp_path], check=True)


def test_a_mutant_whose_tests_cant_be_run_is_not_caught() -> None:
    """It is named, and the others are tried."""
    first = MUTANTS[0]
    nowhere = Mutant(
        name="no such test", path=first.path, old=first.old, new=first.new, tests=("tests/none.py",)
    )
    [tried] = try_all([nowhere], jobs=1)
    assert (tried.is_caught, tried.verdict) == (False, "BROKEN")
    assert "tests/none.py" in tried.why


def test_names_are_told_apart() -> None:
    """Each has a name of its own, and there are enough of them."""
    assert len({one.name for one in MUTANTS}) == len(MUTANTS) >= 20


@pytest.mark.limit(240)
def test_cheap_ones_are_caught_and_the_code_as_it_is_passes() -> None:
    """Three of all: that the machinery sees a difference."""
    cheap = [one for one in MUTANTS if one.name in _CHEAP]
    plain = try_without(test for one in cheap for test in one.tests)
    assert not plain.is_caught, plain.why
    assert [one.name for one in try_all(cheap, jobs=2) if not one.is_caught] == []


def instead_of_hysteresis(new: str) -> Tried:
    """What comes of *new* in the place of the condition, which is {} in it."""
    [first] = [one for one in MUTANTS if one.name == "hysteresis is removed"]
    fault = replace(first, name="made here", new=new.format(first.old))
    [tried] = try_all([fault], jobs=1)
    return tried


@pytest.mark.limit(120)
def test_a_fault_that_ends_the_process_is_caught() -> None:
    """A test that fails, and is never told of by a process that dies, has failed."""
    tried = instead_of_hysteresis("(__import__('os').abort() or {})")
    assert (tried.is_caught, tried.why) == (True, "it was ended by SIGABRT")


@pytest.mark.limit(120)
def test_a_fault_that_changes_nothing_survives_and_says_so() -> None:
    """Not everything is caught: a mutant that is none is not."""
    tried = instead_of_hysteresis("({})")
    assert (tried.is_caught, tried.verdict) == (False, "SURVIVED")


def test_text_that_is_not_there_once_is_an_error_and_the_tree_stays_as_it_is(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A mutant that does not apply any more must not pass for one that was caught."""
    first = MUTANTS[0]
    with pytest.raises(DoesNotApply, match="occurs 0 times"):
        Mutant(name="gone", path=first.path, old="no such text", new="", tests=()).source()
    with pytest.raises(DoesNotApply, match=r"occurs \d+ times"):
        Mutant(name="many", path=first.path, old="return", new="", tests=()).source()
    before = (ROOT / first.path).read_text()
    where: Path = tmp_path_factory.mktemp("tree")
    copy_tree(where)
    apply(first, where)
    assert (where / first.path).read_text() == first.source()
    assert (ROOT / first.path).read_text() == before
