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
    UNKNOWN = "unknown"  # the process that is most likely to may not be looked at


def who_maps(file: os.stat_result, *, likely_pid: int, proc: Path = _PROC) -> Mapped:
    """Look through the mappings of every process for *file*, those of *likely_pid* first.

    Other processes that may not be looked at (every node has some) are taken not to have it: to be
    sure of them is the caller's.
    """
    found = _maps(proc / str(likely_pid), file)
    if found is Mapped.YES:
        return found
    others = (process for process in proc.iterdir() if process.name.isdigit())
    if any(_maps(process, file) is Mapped.YES for process in others):
        return Mapped.YES
    return found


def _maps(process: Path, file: os.stat_result) -> Mapped:
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    wanted = f" {device} {file.st_ino} "
    try:
        text = (process / "maps").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return Mapped.NO  # it has ended, and its mappings with it
    except OSError:
        return Mapped.UNKNOWN
    return Mapped.YES if wanted in text else Mapped.NO
