"""The releases that must work together: this tree, and the one before it as it was.

The old release is a wheel, unpacked where the tests may write, and is run by PYTHONPATH alone: a
process is wholly of one release, and never of both.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tests.nodes import REPOSITORY, environment

OLD_VERSION = "0.1.0"
KEPT = Path(__file__).parent / OLD_VERSION
CLIENT_PATH = (KEPT / "client.py").relative_to(REPOSITORY)
CLIENT = (KEPT / "client.py").read_text()


@dataclass(frozen=True, slots=True)
class Release:
    """One release: its version, and what its processes are to have in their environment."""

    version: str
    path: str

    @property
    def variables(self) -> dict[str, str]:
        """Over what a test's processes have anyway."""
        return {"PYTHONPATH": self.path}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The interpreter with *words*, to its end."""
        return subprocess.run(
            [sys.executable, *words],
            env=environment(**self.variables),
            cwd=KEPT,  # nothing importable lies here
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )


def this_release(version: str) -> Release:
    """The tree that these tests are part of."""
    return Release(version, f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'protos'}")


def release_before(directory: Path) -> Release:
    """The one before, unpacked into *directory*."""
    (wheel,) = KEPT.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(directory)
    return Release(OLD_VERSION, str(directory))
