"""Where a keeper is, and whose proofs its link hands on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aqua_daemon.adapters.keeper_processes import KeeperProcess
from aqua_daemon.core.model import GpuUuid, SessionId


class Proofs(Protocol):
    """What this needs of `holders.Holders`."""

    def add(self, session_id: SessionId, *, pidfd: int, sentinel: int) -> None:
        """Take ownership of both."""

    def descriptors(self, session_id: SessionId) -> tuple[int, int]:
        """Raises KeyError for a session that is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperAddress:
    """One keeper: where it serves, what it keeps, and how it is started if it may be."""

    socket_path: Path
    gpus: tuple[GpuUuid, ...]
    process: KeeperProcess | None = None  # None: it is started from outside
