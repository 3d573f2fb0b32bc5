"""What is installed with systemd: its tools accept it as it is shipped, and it exposes little."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

import pytest

from aqua_daemon.cli import given_settings
from tests.conftest import require_path, require_tool
from tests.nodes import REPOSITORY, environment

DEPLOY = REPOSITORY / "deploy"
DAEMON = "aqua-daemon.service"
KEEPERS = ("aqua-keeper@shm.service", "aqua-keeper@.service")
UNITS = (DAEMON, *KEEPERS)
# Their score would bear the loss of any one of these.
HARDENED = """
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
PrivateTmp=yes
DevicePolicy=closed
LockPersonality=yes
RestrictNamespaces=yes
RestrictSUIDSGID=yes
IPAddressDeny=any
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
UMask=0077
LimitCORE=0
RuntimeDirectoryMode=0750
"""
GPU = "GPU-01234567-89ab-cdef-0123-456789abcdef"
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
    if "@." in name:
        instance = name.replace("@", f"@{GPU}")
        (units / instance).write_text((units / name).read_text())
        name = instance
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


@pytest.mark.parametrize("name", UNITS)
def test_each_line_of_the_hardening_is_there(name: str) -> None:
    """As it is written; code that is made at run time is refused wherever no driver makes any."""
    lines = (DEPLOY / name).read_text().splitlines()
    assert [line for line in HARDENED.strip().splitlines() if line not in lines] == []
    assert ("MemoryDenyWriteExecute=yes" in lines) == (name != "aqua-keeper@.service")
    assert ("PrivateNetwork=yes" in lines) == (name != DAEMON)
    families = {line for line in lines if line.startswith("RestrictAddressFamilies=")}
    inet = " AF_INET AF_INET6" if name == DAEMON else ""
    assert families == {f"RestrictAddressFamilies=AF_UNIX{inet}"}


def started_with(unit: str) -> list[str]:
    return shlex.split(service_of(unit)["ExecStart"])[1:]


def test_what_the_units_start_takes_its_settings_from_the_file() -> None:
    """So that daemon and keepers agree; only what makes them units of their own is a flag."""
    assert given_settings(started_with(DAEMON)) == {"keepers": "external"}
    assert started_with("aqua-keeper@shm.service") == ["keeper"]
    assert started_with("aqua-keeper@.service") == ["keeper", "--gpu", "%i"]


def test_the_daemon_is_watched_and_the_sockets_outlive_it() -> None:
    """Type, watchdog, and a runtime directory that a stop does not take from the keepers."""
    daemon = service_of(DAEMON)
    assert (daemon["Type"], daemon["WatchdogSec"], daemon["Restart"]) == (
        "notify",
        "15",
        "on-failure",
    )
    assert (daemon["StateDirectory"], daemon["StateDirectoryMode"]) == ("aqua", "0700")
    for service in map(service_of, UNITS):
        assert service["RuntimeDirectory"] == "aqua"
        assert service["RuntimeDirectoryPreserve"] == "yes"
        assert service["LimitCORE"] == "0"
        assert int(service["LimitNOFILE"]) >= 65536


def test_what_needs_a_gpu_sees_it_and_the_rest_does_not() -> None:
    """The driver's devices and no others; a keeper of stand-ins has none at all."""
    for unit in (DAEMON, "aqua-keeper@.service"):
        service = service_of(unit)
        assert (service["DevicePolicy"], service["DeviceAllow"]) == ("closed", "char-nvidia* rw")
        assert "PrivateDevices" not in service
    shm = service_of("aqua-keeper@shm.service")
    assert shm["PrivateDevices"] == "yes"
    assert "DeviceAllow" not in shm


def test_keepers_start_with_the_daemon_that_they_are_enabled_for() -> None:
    """And before it; stopping or restarting it does nothing to them."""
    for name in KEEPERS:
        parser = RawConfigParser(strict=False, allow_no_value=True)
        parser.read(DEPLOY / name)
        assert parser["Install"]["WantedBy"] == "aqua-daemon.service"
        assert parser["Unit"]["Before"] == "aqua-daemon.service"
        assert not {"bindsto", "partof", "requires"} & set(parser["Unit"])


def checked(*words: str) -> str:
    run = subprocess.run(words, capture_output=True, text=True, timeout=50, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


def test_sysusers_makes_the_user_and_the_group(tmp_path: Path) -> None:
    """In an empty root: a system user without a shell, and a group of its name."""
    sysusers = require_tool("systemd-sysusers")
    (tmp_path / "etc").mkdir()
    shipped = str(DEPLOY / "aqua.sysusers.conf")
    dry = checked(sysusers, "--dry-run", f"--root={tmp_path}", shipped)
    assert "Creating user 'aqua' (AQUA memory broker)" in dry
    assert not (tmp_path / "etc" / "passwd").exists()
    checked(sysusers, f"--root={tmp_path}", shipped)
    (user,) = (tmp_path / "etc" / "passwd").read_text().splitlines()
    name, _x, uid, _gid, _text, home, shell = user.split(":")
    assert (name, home, shell) == ("aqua", "/var/lib/aqua", "/usr/sbin/nologin")
    assert 0 < int(uid) < 1000
    assert (tmp_path / "etc" / "group").read_text().startswith("aqua:x:")


def test_tmpfiles_makes_the_directories(tmp_path: Path) -> None:
    """In an empty root, with the modes that keep others from sockets and state."""
    tmpfiles = require_tool("systemd-tmpfiles")
    as_root = [] if os.geteuid() == 0 else [require_tool("unshare"), "--map-root-user"]
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text("aqua:x:0:0::/:/\n")
    (tmp_path / "etc" / "group").write_text("aqua:x:0:\n")
    shipped = str(DEPLOY / "aqua.tmpfiles.conf")
    assert checked(*as_root, tmpfiles, f"--root={tmp_path}", "--create", shipped) == ""
    modes = {
        name: oct((tmp_path / name).stat().st_mode & 0o7777)
        for name in ("run/aqua", "var/lib/aqua", "etc/aqua")
    }
    assert modes == {"run/aqua": "0o750", "var/lib/aqua": "0o700", "etc/aqua": "0o755"}


def test_the_readme_installs_what_there_is() -> None:
    """Every file that it names is shipped, and every one that is shipped it installs or names."""
    text = (REPOSITORY / "README.md").read_text()
    patterns = set(re.findall(r"deploy/([\w.@*-]+[\w*])", text))
    found = {path.name for pattern in patterns for path in DEPLOY.glob(pattern)}
    assert [pattern for pattern in patterns if not [*DEPLOY.glob(pattern)]] == []
    assert found == {path.name for path in DEPLOY.iterdir()}


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
