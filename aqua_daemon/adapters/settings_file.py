"""What admins have set, as one small file that outlives the daemon: quotas, and drained GPUs.

It is replaced whole: written beside, made durable, renamed. So there is always one that can be
read, the old or the new, whenever the machine stops. One that can't be read is never taken for
none: that would hand every tenant the default quota, and lend a GPU that is to be repaired.

Whatever is not set is not in it, so that releases which do not know of it can read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aqua_daemon.adapters.statuses import NotKept
from aqua_daemon.adapters.wire import checks
from aqua_daemon.core.errors import InvalidRequest
from aqua_daemon.core.limits import Quota
from aqua_daemon.core.model import GpuUuid, TenantName
from aqua_daemon.core.node_snapshot import NodeSnapshot, QuotaSnapshot
from aqua_daemon.core.sizes import LARGEST_WEIGHT, MOST_PRIORITY, SMALLEST_WEIGHT

SCHEMA = 1
NAME = "quotas.json"
_PARTS = frozenset({"schema", "quotas", "drained"})
_KEYS = frozenset({"bytes", "revision", "leases", "sessions", "weight", "priority"})
_LARGEST_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What admins have set, until they set it otherwise."""

    quotas: Mapping[TenantName, Quota] = field(default_factory=dict)
    drained: frozenset[GpuUuid] = frozenset()


class UnreadableSettings(Exception):
    """The file is there and makes no sense; the message says where and what to do."""


class SettingsFile:
    """The settings' file of one daemon."""

    def __init__(self, path: Path) -> None:
        """Touches nothing yet; the directory is made when there is something to keep."""
        self._path = path
        self._turn = asyncio.Lock()  # of those who write: the last to read is the last to write

    def read(self) -> Kept:
        """What was kept last; nothing where nothing was.

        Raises:
            UnreadableSettings: there is a file, and it does not say what was set.
        """
        try:
            return kept_of(self._path.read_bytes()[: _LARGEST_BYTES + 1])
        except FileNotFoundError:
            return Kept()
        except (OSError, ValueError, RecursionError) as error:
            msg = (
                f"{self._path} can't be read ({error}), so nobody knows what quotas were set. "
                f"Restore it from a backup, or start with the default quota for everybody and no "
                f"GPU drained: "
                f"mv {self._path} {self._path}.bad"
            )
            raise UnreadableSettings(msg) from error

    async def keep(self, read_books: Callable[[], NodeSnapshot]) -> None:
        """Replace the file by what *read_books* tells when it is this call's turn.

        Raises:
            NotKept: the disk refuses; what was there before is there still.
        """
        async with self._turn:
            books = read_books()
            content = content_of(books.quotas, books.drained)
            try:
                await asyncio.to_thread(replace_file, self._path, content)
            except OSError as error:
                msg = (
                    f"the setting is in force but could not be kept in {self._path} "
                    f"({error.strerror}): it ends with this daemon. See to that directory "
                    "(--state-dir), then set it again"
                )
                raise NotKept(msg) from error


def content_of(quotas: Iterable[QuotaSnapshot], drained: Iterable[GpuUuid] = ()) -> bytes:
    """The file's bytes: of every tenant that had a quota set, also where it was set back."""
    said: dict[str, object] = {
        "schema": SCHEMA,
        "quotas": {one.tenant: _entry(one) for one in quotas if one.revision},
    }
    if listed := sorted(drained):
        said["drained"] = listed
    return (json.dumps(said, indent=1) + "\n").encode()


def kept_of(content: bytes) -> Kept:
    """The settings that the file's bytes hold.

    Raises:
        ValueError: anything else than what `content_of` writes.
        RecursionError: the same, nested too deeply to be read.
    """
    found = json.loads(content)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ValueError(f"it is not of schema {SCHEMA}")
    listed, drained = found.get("quotas"), found.get("drained", [])
    if not isinstance(listed, dict) or not isinstance(drained, list) or found.keys() - _PARTS:
        raise ValueError("it has more than quotas and drained GPUs, or no quotas")
    return Kept(
        quotas={_tenant(name): _quota(name, value) for name, value in listed.items()},
        drained=frozenset(map(_gpu, drained)),
    )


def replace_file(path: Path, content: bytes) -> None:
    """Put *content* at *path*, durably, or leave what is there.

    Raises:
        OSError: the disk refuses.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(beside, flags, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)  # the rename, too
    finally:
        os.close(directory)


def _entry(quota: QuotaSnapshot) -> dict[str, float | None]:
    # The rest only where it is set: a file without can be read by daemons that do not know it.
    entry: dict[str, float | None] = {
        "bytes": None if quota.is_default else quota.nbytes,
        "revision": quota.revision,
    }
    if not quota.leases_are_default:
        entry["leases"] = quota.leases
    if not quota.sessions_are_default:
        entry["sessions"] = quota.sessions
    if not quota.weight_is_default:
        entry["weight"] = quota.weight
    if not quota.priority_is_default:
        entry["priority"] = quota.priority
    return entry


def _tenant(name: str) -> TenantName:
    try:
        return checks.tenant(name)
    except InvalidRequest as error:
        raise ValueError(f"{checks.shown(name)} is no tenant's name") from error


def _gpu(name: object) -> GpuUuid:
    try:
        return checks.gpu("drained", name if isinstance(name, str) else "")
    except InvalidRequest as error:
        raise ValueError(f"{checks.shown(str(name))} is no GPU's name") from error


def _quota(name: str, value: object) -> Quota:
    if isinstance(value, Mapping) and {"bytes", "revision"} <= value.keys() <= _KEYS:
        nbytes, revision = value["bytes"], value["revision"]
        leases, sessions = value.get("leases"), value.get("sessions")
        weight, priority = value.get("weight"), value.get("priority")
        are_limits = (
            _is_limit(nbytes, checks.LARGEST_BYTES)
            and _is_limit(leases, checks.LARGEST_COUNT)
            and _is_limit(sessions, checks.LARGEST_COUNT)
            and _is_number(weight, SMALLEST_WEIGHT, LARGEST_WEIGHT, kinds=(int, float))
            and _is_number(priority, -MOST_PRIORITY, MOST_PRIORITY)
        )
        if are_limits and type(revision) is int and revision >= 1:
            return Quota(
                revision=revision,
                nbytes=nbytes,
                leases=leases,
                sessions=sessions,
                weight=weight,
                priority=priority,
            )
    raise ValueError(f"the quota of {checks.shown(name)} is not bytes and a revision")


def _is_limit(value: object, most: int) -> bool:
    return _is_number(value, 0, most)


def _is_number(
    value: object, least: float, most: float, kinds: tuple[type[float], ...] = (int,)
) -> bool:
    """Whether it is not set, or one of these; `True` is none, whatever Python says."""
    return value is None or (type(value) in kinds and least <= value <= most)  # type: ignore[operator]  # a number by now
