"""Who may serve at a socket's path: one daemon, proved by a lock on a file beside it.

Covers the lock, replacing sockets that a crashed daemon left, never taking over a live one, and
the mode and group of what is bound. Does not cover what is said there (presence, grpc_servicer).

Binding over a path in use would silently steal it from its server, and the thief's exit would
unlink it. So: whoever holds the lock may replace what nobody answers at; who does not hold it
touches nothing. The kernel drops the lock with its holder, however that ends. The lock's file is
never removed: a second one under the same name would be a second lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Self

BACKLOG = 128
_GROUP_ONLY_UMASK = 0o117  # 0660: the group's members are the tenants
_PROBE_SECONDS = 1.0  # a Unix connect is refused at once; only a full backlog makes it wait


class SocketInUse(Exception):
    """Another process serves there; the message names it and says what to do."""


class SocketClaim:
    """The right to serve at some paths, as long as it is not closed.

    with SocketClaim(lock="/run/aqua/aqua.sock.lock", group="") as claim:
        listener = claim.listen("/run/aqua/aqua.sock.presence")
    """

    def __init__(self, *, lock: str, group: str) -> None:
        """Take the lock at once.

        Args:
            lock: the path of the lock's file.
            group: who may connect beside the daemon's own uid; empty: the daemon's own group.

        Raises:
            SocketInUse: another process holds the lock.
            KeyError: no such group.
            OSError: the lock's file can't be opened.
        """
        self._group_id = grp.getgrnam(group).gr_gid if group else -1
        self._bound: dict[str, tuple[int, int]] = {}
        self._lock: int | None = _locked(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def listen(self, path: str) -> socket.socket:
        """A listening stream socket at *path*, non-blocking; the caller closes it.

        Raises:
            SocketInUse: somebody who does not hold the lock serves there.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with self.binding(path):
                listener.bind(path)
            listener.listen(BACKLOG)
            listener.settimeout(0)
        except BaseException:
            listener.close()
            raise
        return listener

    @contextlib.contextmanager
    def binding(self, path: str) -> Iterator[None]:
        """Around whatever binds *path*: makes room for it before, sets its group after.

        The umask is the whole process's: let no other thread make files meanwhile.
        """
        if self._lock is None:
            msg = "the claim is closed"
            raise ValueError(msg)
        _remove_stale(path)
        before = os.umask(_GROUP_ONLY_UMASK)
        try:
            yield
        finally:
            os.umask(before)
        if self._group_id != -1:
            os.chown(path, -1, self._group_id)
        self._bound[path] = _identity(path)

    def close(self) -> None:
        """Remove the sockets that are still ours, then drop the lock. May be called twice."""
        if self._lock is None:
            return
        for path, identity in self._bound.items():
            with contextlib.suppress(OSError):  # gone already, or the directory is: nothing to do
                if _identity(path) == identity:
                    Path(path).unlink()
        os.close(self._lock)
        self._lock = None


def _locked(path: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, os.fstat(descriptor)):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                return descriptor
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            msg = f"process {holder} holds {path}: stop that daemon first, or give another --socket"
            raise SocketInUse(msg) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # somebody removed the file before we had its lock: once more


def _remove_stale(path: str) -> None:
    try:
        mode = Path(path).lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        msg = f"{path} is not a socket and will not be replaced: move it, or give another --socket"
        raise SocketInUse(msg)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            msg = f"cannot tell whether {path} is in use ({error}); give another --socket"
            raise SocketInUse(msg) from error
    msg = f"a process that does not hold the lock serves at {path}: stop it first"
    raise SocketInUse(msg)


def _is_at(path: str, found: os.stat_result) -> bool:
    try:
        return _identity(path) == (found.st_dev, found.st_ino)
    except FileNotFoundError:
        return False


def _identity(path: str) -> tuple[int, int]:
    found = Path(path).lstat()
    return found.st_dev, found.st_ino
