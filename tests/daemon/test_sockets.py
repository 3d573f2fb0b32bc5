"""The claim on a node's sockets: one holder, stale ones replaced, live ones left alone."""

from __future__ import annotations

import grp
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aqua_daemon.adapters.sockets import SocketClaim, SocketInUse
from tests.nodes import environment, read_line, short_directory

SERVE = """
import sys
from aqua_daemon.adapters.sockets import SocketClaim
claim = SocketClaim(lock=sys.argv[1] + ".lock", group="")
listener = claim.listen(sys.argv[1])
print("serving", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path() -> Iterator[str]:
    with short_directory() as directory:
        yield str(directory / "s")


def claim_of(path: str, group: str = "") -> SocketClaim:
    return SocketClaim(lock=f"{path}.lock", group=group)


def serving(path: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SERVE, path]
    process = subprocess.Popen(
        command,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert read_line(process.stdout, seconds=20) == "serving\n"
    return process


def connects(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(path)
        except OSError:
            return False
        return True


def test_sockets_are_for_owner_and_group_only(path: str) -> None:
    """Mode 0660 whatever the umask was, which is afterwards as before."""
    before = os.umask(0o000)
    try:
        with claim_of(path) as claim, claim.listen(path):
            assert stat.S_IMODE(Path(path).stat().st_mode) == 0o660
            assert os.umask(0o000) == 0o000
    finally:
        os.umask(before)


@pytest.mark.usefixtures("root")
def test_sockets_go_to_the_group_that_was_asked_for(path: str) -> None:
    """The members of `--group` may connect."""
    group = next(entry for entry in grp.getgrall() if entry.gr_gid != os.getgid())
    with claim_of(path, group=group.gr_name) as claim, claim.listen(path):
        assert Path(path).stat().st_gid == group.gr_gid


def test_an_unknown_group_is_refused_before_anything_is_touched(path: str) -> None:
    """A misspelt group makes no lock and no socket."""
    with pytest.raises(KeyError, match="no-such-group"):
        claim_of(path, group="no-such-group")
    assert not Path(f"{path}.lock").exists()


def test_closing_removes_the_sockets_and_keeps_the_lock_file(path: str) -> None:
    """The path is free for the next daemon, which can take the same lock."""
    claim = claim_of(path)
    with claim.listen(path):
        assert connects(path)
        claim.close()
        assert not Path(path).exists()
        assert Path(f"{path}.lock").read_text() == f"{os.getpid()}\n"
    claim.close()
    with claim_of(path) as again, again.listen(path):
        assert connects(path)


def test_closing_leaves_what_has_become_somebody_elses(path: str) -> None:
    """A socket that another process put there meanwhile stays."""
    claim = claim_of(path)
    mine = claim.listen(path)
    Path(path).unlink()
    with mine, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(path)
        other.listen()
        claim.close()
        assert connects(path)


def test_a_closed_claim_binds_nothing(path: str) -> None:
    """Using it closed raises."""
    claim = claim_of(path)
    claim.close()
    with pytest.raises(ValueError, match="closed"):
        claim.listen(path)
    assert not Path(path).exists()


def test_a_live_daemons_sockets_are_not_stolen(path: str) -> None:
    """The second process is told who holds the lock, and the first goes on serving."""
    first = serving(path)
    inode = Path(path).stat().st_ino
    try:
        with pytest.raises(SocketInUse, match=f"process {first.pid} holds .*--socket"):
            claim_of(path)
        assert Path(path).stat().st_ino == inode
        assert connects(path)
    finally:
        first.communicate("", timeout=10)


def test_what_a_killed_daemon_left_is_replaced(path: str) -> None:
    """Its lock went with it; its socket is stale and makes room for the next."""
    first = serving(path)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=10)
    assert Path(path).is_socket()
    assert not connects(path)
    with claim_of(path) as claim, claim.listen(path):
        assert connects(path)


def test_a_server_without_the_lock_is_not_stolen_from(path: str) -> None:
    """Somebody else's program that answers there keeps its socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other, claim_of(path) as claim:
        other.bind(path)
        other.listen()
        with pytest.raises(SocketInUse, match="does not hold the lock"):
            claim.listen(path)
        assert connects(path)
    assert Path(path).exists()


def test_a_socket_that_may_be_in_use_is_left_alone(path: str) -> None:
    """A datagram server answers no stream connection, and is a server all the same."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, claim_of(path) as claim:
        other.bind(path)
        with pytest.raises(SocketInUse, match="cannot tell"):
            claim.listen(path)
        assert Path(path).exists()


def test_a_file_that_is_no_socket_is_never_replaced(path: str) -> None:
    """A mistyped path costs nobody a file."""
    Path(path).write_text("precious")
    with claim_of(path) as claim, pytest.raises(SocketInUse, match="not a socket"):
        claim.listen(path)
    assert Path(path).read_text() == "precious"


def test_the_lock_is_not_inherited_by_started_programs(path: str) -> None:
    """A keeper that outlives its daemon does not keep the next daemon out."""
    claim = claim_of(path)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    try:
        claim.close()
        claim_of(path).close()
    finally:
        child.communicate(timeout=10)


def test_a_lock_file_that_was_removed_meanwhile_is_made_anew(path: str) -> None:
    """The new file is the lock; whoever still holds the removed one holds nothing."""
    claim = claim_of(path)
    Path(f"{path}.lock").unlink()
    with claim_of(path) as second:
        assert second is not claim
        with pytest.raises(SocketInUse):
            claim_of(path)
    claim.close()
