"""Which sentinels a process keeps."""

from __future__ import annotations

import os
import socket

from aqua_client.sentinels import Sentinels


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_a_sentinel_is_kept_while_anybody_has_its_other_end() -> None:
    """A keeper that was given a copy of it still waits for it, whatever became of the daemon."""
    sentinels = Sentinels()
    daemons, ours = socket.socketpair()
    keepers = daemons.dup()
    old = ours.detach()
    sentinels.add(old)
    daemons.close()
    more, newer = socket.socketpair()
    sentinels.add(newer.detach())
    assert is_open(old)
    keepers.close()
    with more:
        last, newest = socket.socketpair()
        sentinels.add(newest.detach())
        assert not is_open(old)
        assert len(sentinels) == 2
        sentinels.close()
        assert more.recv(1) == last.recv(1) == b""
    last.close()


def test_what_the_other_end_said_does_not_keep_it() -> None:
    """Bytes that nobody reads are no sign of life."""
    sentinels = Sentinels()
    theirs, ours = socket.socketpair()
    theirs.send(b"anything")
    old = ours.detach()
    sentinels.add(old)
    theirs.close()
    other, newer = socket.socketpair()
    with other:
        sentinels.add(newer.detach())
        assert not is_open(old)
        sentinels.close()
