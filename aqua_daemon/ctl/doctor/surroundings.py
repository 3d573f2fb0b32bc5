"""Where this process is: its namespaces, its container, and the machine's NUMA nodes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# The first ones of a machine have these numbers, as the kernel's headers have them.
_FIRST = {"pid": 4026531836, "ipc": 4026531839}
_MARKS = {"docker": "/.dockerenv", "podman": "/run/.containerenv"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespaces:
    """What of the machine is seen from here. None: it can't be told."""

    is_hosts_pid: bool | None = True
    is_hosts_ipc: bool | None = True
    is_daemons_pid: bool | None = True  # the daemon's processes have the same numbers here
    container: str = ""  # docker, podman; empty: none that leaves a mark


@dataclass(frozen=True, slots=True, kw_only=True)
class NumaNode:
    """One node's memory."""

    number: int
    total_bytes: int
    free_bytes: int


def namespaces(*, daemon_pid: int, root: Path = Path("/")) -> Namespaces:
    """Of this process, beside those of the machine and of the daemon."""
    proc = root / "proc"
    own = _namespace(proc / "self", "pid")
    daemons = _namespace(proc / str(daemon_pid), "pid") if daemon_pid else None
    return Namespaces(
        is_hosts_pid=None if own is None else own == _FIRST["pid"],
        is_hosts_ipc=_is_first(proc, "ipc"),
        is_daemons_pid=None if own is None or daemons is None else own == daemons,
        container=next((name for name, mark in _MARKS.items() if (root / mark[1:]).exists()), ""),
    )


def numa_nodes(places: Path = Path("/sys/devices/system/node")) -> tuple[NumaNode, ...]:
    """Every node that the kernel knows; none where it knows of no such thing."""
    found = []
    for place in places.glob("node*"):
        number = re.fullmatch(r"node(\d+)", place.name)
        try:
            text = (place / "meminfo").read_text()
        except OSError:
            continue
        sizes = {key: int(size) * 1024 for key, size in re.findall(r"(\w+):\s+(\d+) kB", text)}
        if number is not None:
            found.append(
                NumaNode(
                    number=int(number[1]),
                    total_bytes=sizes.get("MemTotal", 0),
                    free_bytes=sizes.get("MemFree", 0) + sizes.get("FilePages", 0),
                )
            )
    return tuple(sorted(found, key=lambda node: node.number))


def _is_first(proc: Path, kind: str) -> bool | None:
    own = _namespace(proc / "self", kind)
    return None if own is None else own == _FIRST[kind]


def _namespace(process: Path, kind: str) -> int | None:
    try:
        found = re.search(r"\[(\d+)\]", str((process / "ns" / kind).readlink()))
    except OSError:
        return None
    return int(found[1]) if found else None
