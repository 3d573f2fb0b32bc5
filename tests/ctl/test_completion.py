"""Words that the shell completes are aquactl's own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import require_tool
from tests.nodes import environment


def aquactl(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aqua_daemon.ctl", *words],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    """It asks aquactl itself for the words, under the name that it is installed as."""
    run = aquactl("completion", shell)
    assert (run.returncode, run.stderr) == (0, "")
    assert f"_AQUACTL_COMPLETE={shell}_complete" in run.stdout


def test_bash_takes_the_script() -> None:
    """It has no syntax that bash does not know."""
    bash = require_tool("bash")
    script = aquactl("completion", "bash").stdout
    run = subprocess.run([bash, "-n"], input=script, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(
    ("typed", "word", "offered"),
    [
        ("aquactl st", "1", {"status"}),
        ("aquactl qu", "1", {"quiesce", "quota"}),
        ("aquactl quota ", "2", {"get", "set"}),
        ("aquactl leases --state qu", "3", {"quarantined"}),
    ],
)
def test_the_words_are_offered(typed: str, word: str, offered: set[str]) -> None:
    """Commands, their commands, and the values that an option may have."""
    run = aquactl(_AQUACTL_COMPLETE="bash_complete", COMP_WORDS=typed, COMP_CWORD=word)
    assert {line.partition(",")[2] for line in run.stdout.splitlines()} == offered
