"""What a process costs, as the kernel counts it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """At one moment."""

    rss_bytes: int
    own_bytes: int  # of them: anonymous, so neither files nor memory that is lent
    cpu_seconds: float  # since it began
    descriptors: int
    slabs: int  # of them: shared memory that is lent

    @classmethod
    def of(cls, pid: int) -> Cost:
        """Now. Raises OSError when it has ended."""
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        if "VmRSS" not in status:
            msg = f"process {pid} has ended"
            raise ProcessLookupError(msg)
        # The name, in brackets, may hold anything; utime and stime are fields 14 and 15.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        links = _links(pid)
        return cls(
            rss_bytes=int(status["VmRSS"].split()[0]) * KIB,
            own_bytes=int(status["RssAnon"].split()[0]) * KIB,
            cpu_seconds=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
            descriptors=len(links),
            slabs=sum("memfd:aqua-" in link for link in links),
        )


def mapped_slabs(pid: int) -> int:
    """How many mappings of lent shared memory it has."""
    return sum("memfd:aqua-" in line for line in Path(f"/proc/{pid}/maps").read_text().splitlines())


def _links(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:  # closed since the listing
            continue
    return found
