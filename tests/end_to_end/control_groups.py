"""Where the control groups of this machine are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import NOT_RUN_HERE


def cgroup2_mount() -> Path:
    """Where the unified hierarchy is; where there is none the test is not run."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _device, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    pytest.skip(f"{NOT_RUN_HERE}a mounted cgroup2 is missing")
