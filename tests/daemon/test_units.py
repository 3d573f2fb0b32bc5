"""The units in deploy/: systemd accepts them as they are shipped, and they expose little."""

from __future__ import annotations

import shlex
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

import pytest

from aqua_daemon.cli import given_settings
from aqua_daemon.config import read_config
from tests.conftest import require_path, require_tool
from tests.nodes import REPOSITORY, environment

DEPLOY = REPOSITORY / "deploy"
UNITS = ("aqua-daemon.service", "aqua-keeper@.service")
MOST_EXPOSED = 20  # tenths of systemd's scale: what it calls OK, and nothing above


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The shipped units, their ExecStart pointing at this installation's script."""
    script = Path(sys.executable).parent / "aqua-daemon"
    require_path(script, "units that start the built script")
    for name in UNITS:
        text = (DEPLOY / name).read_text()
        assert "ExecStart=/opt/aqua/bin/aqua-daemon" in text
        (tmp_path / name).write_text(text.replace("/opt/aqua/bin/aqua-daemon", str(script)))
    return tmp_path


def service_of(name: str) -> dict[str, str]:
    parser = RawConfigParser(strict=False, allow_no_value=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # names keep their case
    parser.read(DEPLOY / name)
    return dict(parser["Service"])


def test_every_shipped_unit_is_checked() -> None:
    """A unit that is added must be named here."""
    assert {path.name for path in DEPLOY.glob("*.service")} == set(UNITS)


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_unit(units: Path, name: str) -> None:
    """`systemd-analyze verify` has nothing to say, for the template's instance either."""
    analyze = require_tool("systemd-analyze")
    if name.startswith("aqua-keeper"):
        (units / "aqua-keeper@shm.service").write_text((units / name).read_text())
        name = "aqua-keeper@shm.service"
    check = subprocess.run(
        [analyze, "verify", str(units / name)],
        env={"SYSTEMD_UNIT_PATH": f"{units}:", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (check.returncode, check.stdout + check.stderr) == (0, "")


@pytest.mark.parametrize("name", UNITS)
def test_the_unit_exposes_little(units: Path, name: str) -> None:
    """The judgement of systemd on the hardening stays below 2.0."""
    analyze = require_tool("systemd-analyze")
    threshold = f"--threshold={MOST_EXPOSED}"
    check = subprocess.run(
        [analyze, "security", "--offline=yes", threshold, "--no-pager", str(units / name)],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert check.returncode == 0, check.stdout


def test_daemon_and_keeper_agree_on_gpus_and_socket() -> None:
    """The daemon looks for the very GPUs and the very socket that the keeper has."""
    daemon = shlex.split(service_of("aqua-daemon.service")["ExecStart"])[1:]
    keeper = shlex.split(service_of("aqua-keeper@.service")["ExecStart"])[1:]
    given = given_settings(daemon)
    settings = read_config(given, environment={})
    assert not settings.spawns_keepers
    flags = dict(zip(keeper[1::2], keeper[2::2], strict=True))
    assert keeper[0] == "keeper"
    assert flags["--socket"].replace("%i", "shm") == settings.keeper_socket
    assert flags["--shm-gpus"] == given["shm_gpus"]
    assert flags["--shm-gpu-bytes"] == given["shm_gpu_bytes"]


def test_the_daemon_is_watched_and_the_sockets_outlive_it() -> None:
    """Type, watchdog, and a runtime directory that a stop does not take from the keepers."""
    daemon, keeper = (service_of(name) for name in UNITS)
    assert (daemon["Type"], daemon["WatchdogSec"], daemon["Restart"]) == (
        "notify",
        "15",
        "on-failure",
    )
    for service in (daemon, keeper):
        assert service["RuntimeDirectory"] == "aqua"
        assert service["RuntimeDirectoryPreserve"] == "yes"
        assert service["LimitCORE"] == "0"
        assert int(service["LimitNOFILE"]) >= 65536


@pytest.mark.parametrize("words", [["--help"], ["keeper", "--help"], ["load", "--help"]])
def test_the_built_script_starts(words: list[str]) -> None:
    """What ExecStart points at runs, without the checkout on its path."""
    script = Path(sys.executable).parent / "aqua-daemon"
    require_path(script, "the built script")
    without_path = {key: text for key, text in environment().items() if key != "PYTHONPATH"}
    run = subprocess.run(
        [script, *words],
        cwd="/",
        env=without_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "usage: aqua-daemon" in run.stdout
