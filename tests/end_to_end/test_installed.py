"""The wheel in a clean environment, with what it asks for and nothing else: a node runs from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.test_wheel import wheel
from tests.nodes import MIB, REPOSITORY, environment, running_node

__all__ = ["wheel"]  # the fixture, which builds it

WITHOUT_CHECKOUT = {"PYTHONPATH": ""}


def run(*words: str | Path) -> str:
    """What a program prints; it must end well. It sees no checkout."""
    found = subprocess.run(
        words,
        cwd="/",
        env=environment(**WITHOUT_CHECKOUT),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip puts the programs of an environment that holds the wheel alone."""
    place = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", place)
    programs = place / "bin"
    quiet = ("--quiet", "--disable-pip-version-check")
    run(programs / "pip", "install", *quiet, "-c", REPOSITORY / "constraints.txt", wheel)
    return programs


@pytest.mark.long
@pytest.mark.limit(600)
def test_an_installed_wheel_runs_a_node(programs: Path) -> None:
    """Daemon, keeper and aquactl, none of them from the checkout, and without torch."""
    found = json.loads(
        run(
            programs / "python",
            "-c",
            "import json, importlib.util as u, aqua_daemon, aqua_client, aqua_protos; "
            "print(json.dumps([aqua_daemon.__file__, aqua_client.__file__, aqua_protos.__file__,"
            " u.find_spec('torch') is None]))",
        )
    )
    assert found.pop() is True
    assert all(Path(path).is_relative_to(programs.parent) for path in found)
    with running_node(
        gpus=2,
        gpu_bytes=64 * MIB,
        program=[str(programs / "aqua-daemon")],
        variables=WITHOUT_CHECKOUT,
    ) as node:
        state = json.loads(run(programs / "aquactl", "status", "--json", "--socket", node.socket))
        assert "SHM-1" in json.dumps(state)
        assert node.scrape()['aqua_pool_bytes{gpu="SHM-1",state="free"}'] == 64 * MIB
        assert node.terminate_daemon() == 0


@pytest.mark.long
@pytest.mark.limit(600)
def test_the_installed_programs_check_a_shipped_file(programs: Path) -> None:
    """What the README says to do first with a new file of settings."""
    shipped = REPOSITORY / "deploy" / "aqua-daemon.toml"
    printed = run(programs / "aqua-daemon", "--config", shipped, "--check-config")
    assert printed.startswith('socket = "/run/aqua/aqua.sock"')
