"""Who maps a file, as /proc says: the slow way, for slabs where the quick one was taken away."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path

_PROC = Path("/proc")


class Mapped(Enum):
    """Whether any process has the file mapped."""

    NO = "no"
    YES = "yes"
    UNKNOWN = "unknown"  # there are processes that may not be looked at


def who_maps(file: os.stat_result, *, proc: Path = _PROC) -> Mapped:
    """Look through the mappings of every process for *file*."""
    wanted = (f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}", str(file.st_ino))
    found = Mapped.NO
    for process in proc.iterdir():
        if not process.name.isdigit():
            continue
        try:
            lines = (process / "maps").read_text(errors="replace").splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended, and its mappings with it
        except OSError:
            found = Mapped.UNKNOWN
            continue
        if any(tuple(line.split(maxsplit=5)[3:5]) == wanted for line in lines):
            return Mapped.YES
    return found
