"""What the README says to type, typed: in an empty root, and taken away again.

Does not cover installing the packages (end_to_end.test_installed) nor what systemctl starts: that
needs a machine of one's own.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import click
import pytest

from tests.conftest import require_tool
from tests.nodes import REPOSITORY

PLACES = re.compile(r"(?<![\w./-])/(?=(?:opt|etc|usr|var|run)/)")
UNITS = {"aqua-daemon.service", "aqua-keeper@.service", "aqua-keeper@shm.service"}
ABSOLUTE = re.compile(r"(?<![\w./-])/[\w./@-]*")
# Only what changes the machine outside of the root: these must not run here.
SYSTEM_COMMANDS = ("systemctl", "userdel", "groupdel", "/opt/aqua/bin/pip", "python3 -m venv")


def block_after(words: str) -> list[str]:
    """The lines of the first block of commands that follows *words* in the README."""
    text = (REPOSITORY / "README.md").read_text().split(words, 1)[1]
    return text.split("```\n", 2)[1].splitlines()


def in_root(line: str, root: Path) -> str:
    """The command as it acts on *root*; what would act on the machine itself does nothing."""
    commands = line.partition("  #")[0].split(" && ")
    kept = [
        "true" if command.strip().startswith(SYSTEM_COMMANDS) else command for command in commands
    ]
    line = " && ".join(kept)
    line = re.sub(r"systemd-sysusers$", f"systemd-sysusers --root={root}", line)
    line = line.replace("systemd-tmpfiles ", f"systemd-tmpfiles --root={root} ")
    line = PLACES.sub(f"{root}/", line)
    outside = [path for path in ABSOLUTE.findall(line) if not path.startswith(str(root))]
    assert not outside, f"{line} would touch {outside} of this machine"
    return line


def typed(lines: list[str], root: Path) -> None:
    script = "\n".join(["set -eu", *(in_root(line, root) for line in lines)])
    run = subprocess.run(
        ["bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, script + run.stdout + run.stderr


def ours(root: Path) -> set[str]:
    """Every path in the root that AQUA has brought, by its name."""
    found = {str(path.relative_to(root)) for path in root.rglob("*aqua*")}
    return {path for path in found if "aqua" in Path(path).name}


@pytest.mark.usefixtures("root")
def test_what_is_installed_is_all_there_and_all_goes(tmp_path: Path) -> None:
    """Units, settings, user, directories; then nothing of it but the user, whom userdel takes."""
    for tool in ("bash", "systemd-sysusers", "systemd-tmpfiles"):
        require_tool(tool)
    for place in ("etc/systemd/system", "usr/lib/sysusers.d", "usr/lib/tmpfiles.d"):
        (tmp_path / place).mkdir(parents=True)
    for place in ("usr/local/bin", "opt/aqua/bin"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "opt/aqua/bin/aquactl").touch()  # what pip brings
    before = ours(tmp_path)
    typed(block_after("## Install on a server"), tmp_path)
    assert {path.name for path in (tmp_path / "etc/systemd/system").iterdir()} == UNITS
    assert (tmp_path / "etc/passwd").read_text().startswith("aqua:")
    assert (tmp_path / "etc/aqua/aqua-daemon.toml").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "run/aqua").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "var/lib/aqua").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "usr/local/bin/aquactl").is_symlink()
    assert len(ours(tmp_path) - before) > 8
    typed(block_after("*Uninstall.*"), tmp_path)
    assert ours(tmp_path) == set()


def test_every_command_of_ours_in_the_readme_exists() -> None:
    """`aquactl WORD` and `aqua-daemon --FLAG` are what these programs know."""
    from aqua_daemon.config import DEFAULTS
    from aqua_daemon.ctl.__main__ import commands

    text = (REPOSITORY / "README.md").read_text()
    words = set(re.findall(r"\baquactl ([a-z]+)", text))
    assert len(words) > 5
    assert words <= set(commands.commands)
    flags = set(re.findall(r"aqua-daemon (?:[^`\n]*? )?--([a-z-]+)", text))
    known = {name.replace("_", "-") for name in DEFAULTS}
    assert flags <= known | {"config", "check-config", "version", "help", "gpu", "bytes"}


def test_every_option_of_aquactl_that_is_told_exists() -> None:
    """In the README, in the remedies of alerts, and in what aquactl and the daemon themselves say."""
    places = [REPOSITORY / "README.md", *(REPOSITORY / "deploy").iterdir()]
    places += (REPOSITORY / "aqua_daemon").rglob("*.py")
    told = {
        (line, option)
        for place in places
        for line in re.findall(r"\baquactl [a-z][^`;\n]*", place.read_text())
        for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", line.split(" -- ")[0].split(" | ")[0])
    }
    assert len(told) > 12
    assert [line for line, option in told if option not in options_of(line)] == []


def options_of(line: str) -> set[str]:
    """What the command takes that *line* begins with."""
    from aqua_daemon.ctl.__main__ import commands

    command: click.Command = commands
    for word in line.split()[1:]:
        if isinstance(command, click.Group) and word in command.commands:
            command = command.commands[word]
    return {"--help", *(option for one in command.params for option in one.opts)}
