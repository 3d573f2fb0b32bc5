"""The two descriptors that prove a client's death: its pidfd and the broker's end of its sentinel.

Covers owning them for each session and turning the kernel's word into ProcessEnded and
SentinelEnded. Does not cover where they come from (the presence socket, or a keeper after a
restart) nor what follows (the broker).

A session may have two sentinels: it re-attached to a new daemon, which made it one, before the
keeper told of the first, which children forked earlier may hold. The sentinel has ended when every
one of them has. A keeper that is linked again sends proofs again; what is known already is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from aqua_daemon.core.events import Event, ProcessEnded, SentinelEnded
from aqua_daemon.core.model import SessionId

_DISCARD_BYTES = 64 * 1024
_CHATTER_PAUSE_SECONDS = 0.1  # a client that writes into its sentinel costs us this often, no more


class Holders:
    """Owns and watches the proofs of every session's end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, submit: Callable[[Event], None]) -> None:
        """Events go to *submit*, each once per session."""
        self._loop = loop
        self._submit = submit
        self._holders: dict[SessionId, _Holder] = {}
        self._rivals: dict[SessionId, tuple[int, int]] = {}  # pidfd and sentinel, not watched

    def knows(self, session_id: SessionId) -> bool:
        """Whether there are proofs for this session."""
        return session_id in self._holders

    def are_of(self, session_id: SessionId, pidfd: int) -> bool:
        """Whether the proofs, if there are any, are those of the process of *pidfd*."""
        holder = self._holders.get(session_id)
        return holder is None or _pid_of(holder.pidfd) == _pid_of(pidfd)

    def add(self, session_id: SessionId, *, pidfd: int, sentinel: int) -> None:
        """Take ownership of both descriptors and watch them; what is already known is closed."""
        holder = self._holders.get(session_id)
        if holder is None:
            self._begin(session_id, pidfd=pidfd, sentinel=sentinel)
        elif not self.are_of(session_id, pidfd):
            self._close_rival(session_id)
            self._rivals[session_id] = (pidfd, sentinel)
        else:
            os.close(pidfd)
            if any(os.path.sameopenfile(sentinel, known) for known in holder.sentinels):
                os.close(sentinel)
            else:
                self._add_sentinel(session_id, holder, sentinel)

    def descriptors(self, session_id: SessionId) -> tuple[int, int]:
        """The pidfd and a sentinel; they stay owned here.

        Raises:
            KeyError: no such session.
        """
        holder = self._holders[session_id]
        return holder.pidfd, holder.sentinels[0]

    def forget(self, session_id: SessionId) -> None:
        """Close what belongs to a session. Idempotent."""
        holder = self._holders.pop(session_id, None)
        if holder is not None:
            for descriptor in (holder.pidfd, *holder.sentinels):
                self._loop.remove_reader(descriptor)
                os.close(descriptor)
        rival = self._rivals.pop(session_id, None)
        if rival is not None:
            pidfd, sentinel = rival
            self._begin(session_id, pidfd=pidfd, sentinel=sentinel)

    def close(self) -> None:
        """Close everything. May be called twice."""
        for session_id in list(self._rivals):
            self._close_rival(session_id)
        for session_id in list(self._holders):
            self.forget(session_id)

    def _begin(self, session_id: SessionId, *, pidfd: int, sentinel: int) -> None:
        holder = self._holders[session_id] = _Holder(pidfd=pidfd)
        self._loop.add_reader(pidfd, self._process_ended, session_id)
        self._add_sentinel(session_id, holder, sentinel)

    def _add_sentinel(self, session_id: SessionId, holder: _Holder, sentinel: int) -> None:
        os.set_blocking(sentinel, False)
        holder.sentinels.append(sentinel)
        self._watch(session_id, sentinel)

    def _close_rival(self, session_id: SessionId) -> None:
        for descriptor in self._rivals.pop(session_id, ()):
            os.close(descriptor)

    def _process_ended(self, session_id: SessionId) -> None:
        self._loop.remove_reader(self._holders[session_id].pidfd)
        self._submit(ProcessEnded(session_id=session_id))

    def _watch(self, session_id: SessionId, sentinel: int) -> None:
        self._loop.add_reader(sentinel, self._sentinel_readable, session_id, sentinel)

    def _sentinel_readable(self, session_id: SessionId, sentinel: int) -> None:
        self._loop.remove_reader(sentinel)
        if _has_chatter(sentinel):
            self._loop.call_later(_CHATTER_PAUSE_SECONDS, self._look_again, session_id, sentinel)
            return
        holder = self._holders[session_id]
        holder.ended.add(sentinel)
        if holder.ended.issuperset(holder.sentinels):
            self._submit(SentinelEnded(session_id=session_id))

    def _look_again(self, session_id: SessionId, sentinel: int) -> None:
        holder = self._holders.get(session_id)
        if holder is not None and sentinel in holder.sentinels:
            self._watch(session_id, sentinel)


@dataclass(slots=True, kw_only=True)
class _Holder:
    pidfd: int
    sentinels: list[int] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)


def _pid_of(pidfd: int) -> int:
    """The process of a pidfd; -1 when it has ended and been reaped."""
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))


def _has_chatter(sentinel: int) -> bool:
    """Throw away what the client wrote where nothing is to be written; False at its end."""
    duplicate = socket.socket(fileno=os.dup(sentinel))
    with contextlib.closing(duplicate):
        try:
            return bool(duplicate.recv(_DISCARD_BYTES))
        except BlockingIOError:
            return True  # woken for nothing
        except OSError:
            return False  # reset: the other end is gone
