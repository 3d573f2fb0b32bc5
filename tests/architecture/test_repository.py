"""What a stranger types and what is installed: there, pinned, and free of anybody's own paths."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import require_tool
from tests.nodes import REPOSITORY

TARGETS = {"venv", "demo", "check", "check-long", "check-gpu", "probe-gpu", "bench", "fix"}
PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.+!]*")
OWN_PATHS = re.compile(r"(?<![\w.}>*-])/(?:work|home|root)(?:/|\b(?![-\w]))")
TEXT_ENDINGS = {
    ".py",
    ".pyi",
    ".proto",
    ".md",
    ".toml",
    ".txt",
    ".yml",
    ".json",
    ".service",
    ".conf",
}


def makefile() -> str:
    return (REPOSITORY / "Makefile").read_text()


def test_makes_targets_are_declared_and_documented_where_they_are_used() -> None:
    """Each that the README or this list names exists, and each that exists is no file's name."""
    rules = set(re.findall(r"^([a-z][\w-]*):(?!=)", makefile(), re.MULTILINE))
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile(), re.MULTILINE)
    named = set(re.findall(r"`make ([a-z-]+)", (REPOSITORY / "README.md").read_text()))
    assert rules >= TARGETS | named
    assert rules == set(phony.split())


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_make_knows_how_to_make_each_target(target: str) -> None:
    """A dry run finds every prerequisite."""
    run = subprocess.run(
        [require_tool("make"), "--dry-run", target],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_every_constraint_is_one_exact_version() -> None:
    """Names and versions only: where they come from, the environment says."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line.strip() and not line.startswith("#")]
    assert [line for line in pins if not PIN.fullmatch(line)] == []
    assert "torch==2.13.0" in pins
    names = [line.partition("==")[0].lower().replace("_", "-") for line in pins]
    assert len(names) == len(set(names)) > 20


def product_files() -> list[Path]:
    """Everything that is shipped or read, but not these tests, which name what they look for."""
    run = subprocess.run(
        [require_tool("git"), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:  # a copy without its history
        listed = [str(path.relative_to(REPOSITORY)) for path in REPOSITORY.rglob("*")]
        listed = [name for name in listed if not name.startswith(".")]
    else:
        listed = [name for name in run.stdout.split("\0") if name]
    paths = [REPOSITORY / name for name in listed]
    return [
        path
        for path in paths
        if path.is_file()
        and (path.suffix in TEXT_ENDINGS or path.name == "Makefile")
        and path != Path(__file__)
    ]


def test_no_text_names_a_place_of_whoever_wrote_it() -> None:
    """Nobody's home directory or checkout is in code, tests, units or words."""
    files = product_files()
    assert len(files) > 200
    found = [
        f"{path.relative_to(REPOSITORY)}: {line.strip()}"
        for path in files
        for line in path.read_text(errors="replace").splitlines()
        if OWN_PATHS.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("place", ["work", "home", "root"])
@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("see /{}/x.py", True),
        ("'/{}/alice'", True),
        ("/{}/.cache", True),
        ("HOME=/{}", True),
        ("tests/{}/x", False),
        ("deploy/{}", False),
        ("/{}ers", False),
        ("--{}=/tmp/x", False),
    ],
)
def test_such_a_place_would_be_seen(text: str, place: str, *, is_found: bool) -> None:
    """The pattern finds what it should, and no word that only looks like it."""
    assert bool(OWN_PATHS.search(text.format(place))) == is_found
