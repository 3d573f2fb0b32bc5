"""The wheel holds what its programs need, and these start where there is no torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("aqua_client", "aqua_daemon", "protos")
FILES = ("LICENSE", "README.md", "pyproject.toml")
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails, as on a node that has none
from {module} import main
sys.argv = ["{name}", "--version"]
raise SystemExit(main())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because building writes beside what it builds from."""
    copy, built = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheels")
    for name in SOURCES:
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__py*"))
    for name in FILES:
        shutil.copy(REPOSITORY / name, copy)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run = subprocess.run(
        [*build, "-w", str(built), "."], cwd=copy, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    (found,) = built.glob("aqua_broker-*.whl")
    return found


@pytest.mark.limit(120)
def test_the_wheel_is_whole(wheel: Path) -> None:
    """Every module and file of ours, with the types, the protocol and the demo's text."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "aqua_client/py.typed",
        "aqua_daemon/py.typed",
        "aqua_protos/py.typed",
        "aqua_protos/broker.proto",
        "aqua_client/demo/text.txt",
    } <= inside
    modules = {
        str(path.relative_to(REPOSITORY)).removeprefix("protos/")
        for name in SOURCES
        for path in (REPOSITORY / name).rglob("*.py")
    }
    assert modules <= inside
    assert not [name for name in inside if name.startswith("tests/")]


@pytest.mark.limit(120)
@pytest.mark.parametrize(
    ("module", "name"),
    [("aqua_daemon.__main__", "aqua-daemon"), ("aqua_daemon.ctl.__main__", "aquactl")],
)
def test_its_programs_start_without_torch(
    wheel: Path, tmp_path: Path, module: str, name: str
) -> None:
    """From the wheel alone, in an empty directory."""
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH.format(module=module, name=name)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(name)
