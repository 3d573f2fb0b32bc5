"""The pidfd and sentinel of every session that holds a slab here.

They come with each allocation and are kept once per session, for as long as it holds a slab: the
next daemon gets them, and the keeper itself asks them whether a holder may still live.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
from dataclasses import dataclass

from aqua_daemon.keeper.refusal import invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Both descriptors of one session."""

    session_id: str
    pidfd: int
    sentinel: int

    def has_ended(self) -> bool:
        """The process is gone, and everybody whom it left its sentinel to."""
        return _polls(self.pidfd, select.POLLIN) and _polls(self.sentinel, select.POLLHUP)


class Proofs:
    """Owns one `Proof` for each session, counted by its slabs."""

    def __init__(self) -> None:
        self._proofs: dict[str, Proof] = {}
        self._slabs: dict[str, int] = {}

    def knows(self, session_id: str) -> bool:
        """Whether the session holds a slab, and so its proof is kept."""
        return session_id in self._proofs

    def keep(self, session_id: str, *, pidfd: int, sentinel: int) -> None:
        """Count one more slab; takes ownership of both, and closes them if they are known."""
        if session_id in self._proofs:
            os.close(pidfd)
            os.close(sentinel)
        else:
            proof = Proof(session_id=session_id, pidfd=pidfd, sentinel=sentinel)
            self._proofs[session_id] = proof
        self._slabs[session_id] = self._slabs.get(session_id, 0) + 1

    def drop(self, session_id: str) -> None:
        """Count one slab less; the last one closes the descriptors."""
        self._slabs[session_id] -= 1
        if not self._slabs[session_id]:
            del self._slabs[session_id]
            proof = self._proofs.pop(session_id)
            os.close(proof.pidfd)
            os.close(proof.sentinel)

    def of(self, session_id: str) -> Proof:
        """The proof of a session that holds a slab."""
        return self._proofs[session_id]

    def all(self) -> tuple[Proof, ...]:
        """Every session's."""
        return tuple(self._proofs.values())

    def close(self) -> None:
        """Close all of them. May be called twice."""
        for proof in self._proofs.values():
            os.close(proof.pidfd)
            os.close(proof.sentinel)
        self._proofs.clear()
        self._slabs.clear()


def check_proof(*, pidfd: int, sentinel: int) -> None:
    """Refuse descriptors that could never prove anything.

    Raises:
        Refused: the first is no pidfd, or the second no socket.
    """
    if not _is_pidfd(pidfd):
        raise invalid("the first descriptor of Allocate must be the holder's pidfd")
    if not stat.S_ISSOCK(os.fstat(sentinel).st_mode):
        raise invalid("the second descriptor of Allocate must be a socket: the holder's sentinel")


def _is_pidfd(descriptor: int) -> bool:
    try:
        signal.pidfd_send_signal(descriptor, 0)  # asks; nobody is told anything
    except OSError as error:
        return error.errno != errno.EBADF  # what else it says, it says of a process
    return True


def _polls(descriptor: int, wanted: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, wanted)
    return any(events & wanted for _, events in poll.poll(0))
