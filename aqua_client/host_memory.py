"""How much host memory this process may count on: what is available, and its cgroup's limit.

Covers cgroup v2 and v1. Does not cover what the process has used of its limit: the pager counts
its own bytes, and the daemon's ledger counts everybody's.
"""

from __future__ import annotations

from pathlib import Path

# Of the smaller of limit and available memory: a server's own weights and batches come first.
HOST_SHARE = 4

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def default_host_limit_bytes(*, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """A quarter of the smaller of the cgroup's limit and the memory available now."""
    available = available_bytes(proc=proc)
    limit = cgroup_limit_bytes(proc=proc, cgroups=cgroups)
    return min(available, available if limit is None else limit) // HOST_SHARE


def available_bytes(*, proc: Path = _PROC) -> int:
    """MemAvailable; 0 where the kernel does not say."""
    for line in _lines(proc / "meminfo"):
        key, _, rest = line.partition(":")
        if key == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return 0


def cgroup_limit_bytes(*, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """The lowest limit from this process's cgroup up to the root; None: unlimited."""
    limits: list[int] = []
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limits += _limits(cgroups, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits(cgroups / "memory", path, "memory.limit_in_bytes")
    return min(limits, default=None)


def _limits(root: Path, path: str, name: str) -> list[int]:
    # A container sees its own cgroup as the root, whatever /proc says of the path: so try each.
    place = root / path.lstrip("/")
    places = [place, *place.parents]
    found = (_lines(one / name) for one in places[: places.index(root) + 1])
    return [int(lines[0]) for lines in found if lines and lines[0].isdigit()]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []  # not on this kernel
