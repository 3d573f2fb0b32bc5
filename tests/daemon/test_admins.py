"""Who is an admin: by uid, by the groups that the kernel says, and what the others are told."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aqua_daemon.adapters import processes
from aqua_daemon.adapters.admins import Admins, admins_of
from aqua_daemon.adapters.processes import Peer, groups_of, peer_of
from aqua_daemon.core.errors import NotPermitted
from aqua_daemon.core.events import QuiesceRequested, QuotaSet
from aqua_daemon.core.model import ProcessIdentity, RequestId
from tests.core.bench import ALICE, NEAR, Bench

CONNECT = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.stdin.read()"
OPS, OTHERS = 4711, 4712
needs_root = pytest.mark.usefixtures("root")  # which alone gives children groups


def peer(uid: int, *groups: int) -> Peer:
    process = ProcessIdentity(pid=1, start_ticks=1, uid=uid)
    return Peer(process=process, pidfd=-1, cgroup="", groups=frozenset(groups))


@pytest.mark.parametrize(
    ("one", "group_id", "is_admin"),
    [
        (peer(0), None, True),
        (peer(990), None, True),
        (peer(1000), None, False),
        (peer(1000, OPS), None, False),
        (peer(1000, OPS), OPS, True),
        (peer(1000, OTHERS, OPS), OPS, True),
        (peer(1000, OTHERS), OPS, False),
        (peer(1000), OPS, False),
        (peer(1000, 0), None, False),  # root's group makes nobody root
        (peer(0), OPS, True),
    ],
)
def test_root_the_daemons_user_and_the_group_are_admins(
    one: Peer, group_id: int | None, *, is_admin: bool
) -> None:
    """Nobody else is."""
    assert Admins(daemon_uid=990, group_id=group_id).include(one) is is_admin


def test_the_group_is_looked_up_once_by_its_name() -> None:
    """The daemon's own uid is the other half."""
    ours = grp.getgrgid(os.getgid())
    assert admins_of(ours.gr_name) == Admins(daemon_uid=os.getuid(), group_id=ours.gr_gid)
    assert admins_of("") == Admins(daemon_uid=os.getuid(), group_id=None)
    with pytest.raises(KeyError):
        admins_of("no-such-group")


def test_a_peers_groups_are_the_kernels_word(tmp_path: Path) -> None:
    """Its own group, and the supplementary ones of the process that connected."""
    with connected(tmp_path) as connection:
        assert groups_seen(connection) == {os.getgid(), *os.getgroups()}


@needs_root
@pytest.mark.parametrize("count", [0, 1, 256, 257, 1000])
def test_any_number_of_groups_is_seen(tmp_path: Path, count: int) -> None:
    """Also more than one socket option can hold."""
    groups = list(range(5000, 5000 + count))
    with connected(tmp_path, extra_groups=groups, group=OTHERS) as connection:
        assert groups_seen(connection) == {OTHERS, *groups}


@needs_root
def test_kernels_without_the_socket_option_are_asked_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The groups are then those in /proc."""
    monkeypatch.setattr(processes, "_SO_PEERGROUPS", 9999)  # no such option
    with connected(tmp_path, extra_groups=[OPS], group=OTHERS) as connection:
        assert groups_seen(connection) == {OTHERS, OPS}


def test_groups_are_read_from_a_status_text() -> None:
    """The line may be empty, or not there at all; a process's name is no such line."""
    assert groups_of("Name:\tx\nGroups:\t4 24 1000 \nNStgid:\t7\n") == {4, 24, 1000}
    assert groups_of("Name:\tGroups: 0\nGroups:\t \n") == frozenset()
    assert groups_of("") == frozenset()


@pytest.mark.parametrize(
    ("group", "says"),
    [
        ("", "ask as root or as the daemon's user$"),
        ("ops", "ask as root, as the daemon's user, or as a member of the group ops$"),
    ],
)
def test_others_are_told_whom_to_ask(group: str, says: str) -> None:
    """The refusal names the group if there is one."""
    bench = Bench(admin_group=group)
    session = bench.open()
    with pytest.raises(NotPermitted, match=f"only an admin may set quotas: {says}"):
        bench.handle(
            QuotaSet(
                session_id=session,
                request_id=RequestId("q"),
                tenant=ALICE,
                nbytes=1,
                revision=None,
            )
        )
    with pytest.raises(NotPermitted, match=f"only an admin may quiesce a GPU: {says}"):
        bench.handle(
            QuiesceRequested(session_id=session, request_id=RequestId("r"), gpu=NEAR, seconds=1.0)
        )


@contextlib.contextmanager
def connected(
    directory: Path, *, group: int | None = None, extra_groups: list[int] | None = None
) -> Iterator[socket.socket]:
    """A child in these groups that is connected to us, and our end."""
    path = str(directory / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        child = subprocess.Popen(
            [sys.executable, "-c", CONNECT, path],
            stdin=subprocess.PIPE,
            group=group,
            extra_groups=extra_groups,
        )
        with child:
            connection, _ = listener.accept()
            with connection:
                yield connection
            child.communicate()


def groups_seen(connection: socket.socket) -> frozenset[int]:
    found = peer_of(connection)
    os.close(found.pidfd)
    return found.groups
