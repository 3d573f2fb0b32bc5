"""How much host memory may be used by default: from /proc and cgroups laid out in a directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from aqua_client.host_memory import available_bytes, cgroup_limit_bytes, default_host_limit_bytes

GIB = 2**30


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc with 8 GiB available and no cgroup yet."""
    place = tmp_path / "proc"
    (place / "self").mkdir(parents=True)
    (place / "meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    return place


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    place = tmp_path / "cgroup"
    place.mkdir()
    return place


def test_available_memory_is_the_kernels_word(proc: Path) -> None:
    """MemAvailable counts, not MemTotal."""
    assert available_bytes(proc=proc) == 8 * GIB


def test_without_a_limit_a_quarter_of_what_is_available(proc: Path, cgroups: Path) -> None:
    """No cgroup file at all is no limit."""
    assert cgroup_limit_bytes(proc=proc, cgroups=cgroups) is None
    assert default_host_limit_bytes(proc=proc, cgroups=cgroups) == 2 * GIB


def test_the_lowest_limit_on_the_way_up_holds(proc: Path, cgroups: Path) -> None:
    """A parent's limit binds its children, and "max" is none."""
    (proc / "self" / "cgroup").write_text("0::/system.slice/server.service\n")
    (cgroups / "system.slice" / "server.service").mkdir(parents=True)
    (cgroups / "system.slice" / "server.service" / "memory.max").write_text("max\n")
    (cgroups / "system.slice" / "memory.max").write_text(f"{4 * GIB}\n")
    assert cgroup_limit_bytes(proc=proc, cgroups=cgroups) == 4 * GIB
    assert default_host_limit_bytes(proc=proc, cgroups=cgroups) == GIB


def test_a_container_that_sees_only_its_own_cgroup(proc: Path, cgroups: Path) -> None:
    """Where /proc names a path that is not mounted, the root's limit is the container's."""
    (proc / "self" / "cgroup").write_text("0::/docker/abc\n")
    (cgroups / "memory.max").write_text(f"{2 * GIB}\n")
    assert cgroup_limit_bytes(proc=proc, cgroups=cgroups) == 2 * GIB


def test_the_first_cgroups_are_read_too(proc: Path, cgroups: Path) -> None:
    """Version 1 has a tree of its own for memory."""
    (proc / "self" / "cgroup").write_text("5:cpu,cpuacct:/a\n4:memory:/a\n")
    (cgroups / "memory" / "a").mkdir(parents=True)
    (cgroups / "memory" / "a" / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    assert cgroup_limit_bytes(proc=proc, cgroups=cgroups) == GIB


def test_a_limit_above_what_is_available_changes_nothing(proc: Path, cgroups: Path) -> None:
    """The smaller of the two counts."""
    (proc / "self" / "cgroup").write_text("0::/\n")
    (cgroups / "memory.max").write_text(f"{64 * GIB}\n")
    assert default_host_limit_bytes(proc=proc, cgroups=cgroups) == 2 * GIB


def test_a_kernel_that_says_nothing_gives_nothing(tmp_path: Path) -> None:
    """Without /proc no host memory is promised, and nothing raises."""
    assert default_host_limit_bytes(proc=tmp_path, cgroups=tmp_path) == 0
