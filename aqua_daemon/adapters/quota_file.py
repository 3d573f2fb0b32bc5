"""What admins have set, as one small file that outlives the daemon.

It is replaced whole: written beside, made durable, renamed. So there is always one that can be
read, the old or the new, whenever the machine stops. One that can't be read is never taken for
none: that would hand every tenant the default quota.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from aqua_daemon.adapters.statuses import NotKept
from aqua_daemon.adapters.wire import checks
from aqua_daemon.core.errors import InvalidRequest
from aqua_daemon.core.limits import Quota
from aqua_daemon.core.model import QuotaSnapshot, TenantName

SCHEMA = 1
NAME = "quotas.json"
_KEYS = frozenset({"bytes", "revision", "leases", "sessions"})
_LARGEST_BYTES = 16 * 2**20


class UnreadableQuotas(Exception):
    """The file is there and makes no sense; the message says where and what to do."""


class QuotaFile:
    """The quotas file of one daemon."""

    def __init__(self, path: Path) -> None:
        """Touches nothing yet; the directory is made when there is something to keep."""
        self._path = path
        self._turn = asyncio.Lock()  # of those who write: the last to read is the last to write

    def read(self) -> dict[TenantName, Quota]:
        """What was kept last; nothing where nothing was.

        Raises:
            UnreadableQuotas: there is a file, and it does not say what quotas there are.
        """
        try:
            return quotas_of(self._path.read_bytes()[: _LARGEST_BYTES + 1])
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            msg = (
                f"{self._path} can't be read ({error}), so nobody knows what quotas were set. "
                f"Restore it from a backup, or start with the default quota for everybody: "
                f"mv {self._path} {self._path}.bad"
            )
            raise UnreadableQuotas(msg) from error

    async def keep(self, read_quotas: Callable[[], Iterable[QuotaSnapshot]]) -> None:
        """Replace the file by what *read_quotas* tells when it is this call's turn.

        Raises:
            NotKept: the disk refuses; what was there before is there still.
        """
        async with self._turn:
            content = content_of(read_quotas())
            try:
                await asyncio.to_thread(replace_file, self._path, content)
            except OSError as error:
                msg = (
                    f"the quota is in force but could not be kept in {self._path} "
                    f"({error.strerror}): it ends with this daemon. See to that directory "
                    "(--state-dir), then set it again"
                )
                raise NotKept(msg) from error


def content_of(quotas: Iterable[QuotaSnapshot]) -> bytes:
    """The file's bytes: of every tenant that had a quota set, also where it was set back."""
    listed = {one.tenant: _entry(one) for one in quotas if one.revision}
    return (json.dumps({"schema": SCHEMA, "quotas": listed}, indent=1) + "\n").encode()


def quotas_of(content: bytes) -> dict[TenantName, Quota]:
    """The quotas that the file's bytes hold.

    Raises:
        ValueError: anything else than what `content_of` writes.
    """
    found = json.loads(content)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ValueError(f"it is not of schema {SCHEMA}")
    listed = found.get("quotas")
    if not isinstance(listed, dict) or found.keys() != {"schema", "quotas"}:
        raise ValueError("it has more than quotas, or none")
    return {_tenant(name): _quota(name, value) for name, value in listed.items()}


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


def _entry(quota: QuotaSnapshot) -> dict[str, int | None]:
    # Counts only where they are set: a file without them can be read by daemons that know none.
    entry = {"bytes": None if quota.is_default else quota.nbytes, "revision": quota.revision}
    if not quota.leases_are_default:
        entry["leases"] = quota.leases
    if not quota.sessions_are_default:
        entry["sessions"] = quota.sessions
    return entry


def _tenant(name: str) -> TenantName:
    try:
        return checks.tenant(name)
    except InvalidRequest as error:
        raise ValueError(f"{checks.shown(name)} is no tenant's name") from error


def _quota(name: str, value: object) -> Quota:
    if isinstance(value, Mapping) and {"bytes", "revision"} <= value.keys() <= _KEYS:
        nbytes, revision = value["bytes"], value["revision"]
        leases, sessions = value.get("leases"), value.get("sessions")
        are_limits = (
            _is_limit(nbytes, checks.LARGEST_BYTES)
            and _is_limit(leases, checks.LARGEST_COUNT)
            and _is_limit(sessions, checks.LARGEST_COUNT)
        )
        if are_limits and type(revision) is int and revision >= 1:
            return Quota(revision=revision, nbytes=nbytes, leases=leases, sessions=sessions)
    raise ValueError(f"the quota of {checks.shown(name)} is not bytes and a revision")


def _is_limit(value: object, most: int) -> bool:
    return value is None or (type(value) is int and 0 <= value <= most)
