"""A listening Unix socket that one process serves at a time.

`PATH.lock` is held for as long as this process lives, whatever becomes of the socket's own file: a
live one is never stolen, one that a crash left behind is replaced. The lock's file stays; removing
it would let two processes each hold a lock on "the" file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from typing import Self

_OWNER_ONLY_UMASK = 0o177  # the socket becomes 0600
_BACKLOG = 128


class AlreadyServed(Exception):
    """Another living process serves this socket."""


class ExclusiveSocket:
    """Holds the lock and the listener; `close` gives both back and removes the socket's file."""

    def __init__(self, path: Path) -> None:
        """Lock, then bind.

        Raises:
            AlreadyServed: another process holds the lock.
            OSError: the path can't be used; the message names it.
        """
        self._path = path
        with contextlib.ExitStack() as undo:
            self._lock = _locked(path.with_name(f"{path.name}.lock"))
            undo.callback(os.close, self._lock)
            self.listener = undo.enter_context(
                socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            )
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            _bind(self.listener, path)
            self.listener.listen(_BACKLOG)
            undo.pop_all()

    def close(self) -> None:
        """Stop listening. May be called twice."""
        if self.listener.fileno() == -1:
            return
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self.listener.close()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _locked(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        msg = f"{path} is locked: a keeper already serves there; stop it or choose another socket"
        raise AlreadyServed(msg) from None
    return descriptor


def _bind(listener: socket.socket, path: Path) -> None:
    before = os.umask(_OWNER_ONLY_UMASK)
    try:
        listener.bind(str(path))
    except OSError as error:
        msg = f"can't listen at {path}: {error}"
        raise OSError(error.errno, msg) from error
    finally:
        os.umask(before)
