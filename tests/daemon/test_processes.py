"""Who is at the other end: real peers, and cgroup texts as nodes have them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aqua_daemon.adapters import processes
from aqua_daemon.adapters.processes import (
    PeerGone,
    has_ended,
    peer_of,
    peer_uid,
    read_start_ticks,
    start_ticks_of,
    tenant_of,
    unit_of,
)
from aqua_daemon.core.errors import InvalidRequest, NotPermitted

CONTAINER = "3f2a" * 16
CONNECT = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.stdin.read()"

# What /proc/PID/cgroup said, and the unit or container that it names.
CGROUPS = {
    "v2 service": ("0::/system.slice/vllm.service\n", "vllm.service"),
    "v2 template instance": (
        "0::/system.slice/system-vllm.slice/vllm@7.service\n",
        "vllm@7.service",
    ),
    "v2 login session": ("0::/user.slice/user-1000.slice/session-3.scope\n", ""),
    "v2 user unit": (
        "0::/user.slice/user-1000.slice/user@1000.service/app.slice/mine.service\n",
        "",
    ),
    "v2 a service's own sub-group": (
        "0::/system.slice/vllm.service/other.service\n",
        "vllm.service",
    ),
    "v2 a service's sub-group that looks like a container": (
        f"0::/system.slice/vllm.service/docker-{CONTAINER}.scope\n",
        "vllm.service",
    ),
    "v2 docker": (f"0::/system.slice/docker-{CONTAINER}.scope\n", f"container-{CONTAINER[:12]}"),
    "v2 podman": (f"0::/machine.slice/libpod-{CONTAINER}.scope\n", f"container-{CONTAINER[:12]}"),
    "v2 kubernetes": (
        f"0::/kubepods.slice/kubepods-pod7.slice/cri-containerd-{CONTAINER}.scope\n",
        f"container-{CONTAINER[:12]}",
    ),
    "v2 below the runtime's unit": (
        f"0::/system.slice/containerd.service/kubepods-podab.slice:cri-containerd:{CONTAINER}\n",
        f"container-{CONTAINER[:12]}",
    ),
    "v1 docker": (
        f"12:memory:/docker/{CONTAINER}\n1:name=systemd:/docker/{CONTAINER}\n",
        f"container-{CONTAINER[:12]}",
    ),
    "v1 service": (
        "5:cpu,cpuacct:/\n4:memory:/system.slice/tgi.service\n1:name=systemd:/system.slice/tgi.service\n",
        "tgi.service",
    ),
    "hybrid": (
        "4:memory:/batch/17\n1:name=systemd:/system.slice/tgi.service\n0::/\n",
        "tgi.service",
    ),
    "v1 without systemd": (
        f"9:name=systemd:/\n4:memory:/docker/{CONTAINER}\n0::/\n",
        f"container-{CONTAINER[:12]}",
    ),
    "v2 nspawn": (
        "0::/machine.slice/systemd-nspawn@web.service/payload\n",
        "systemd-nspawn@web.service",
    ),
    "v2 cri-o": (
        f"0::/kubepods.slice/kubepods-burstable.slice/crio-{CONTAINER}.scope\n",
        f"container-{CONTAINER[:12]}",
    ),
    "v2 kubernetes without systemd": (
        f"0::/kubepods/besteffort/pod7f1c/{CONTAINER}\n",
        f"container-{CONTAINER[:12]}",
    ),
    "v1 kubernetes": (
        f"4:memory:/kubepods/burstable/pod7f1c/{CONTAINER}\n1:name=systemd:/kubepods/x/{CONTAINER}\n",
        f"container-{CONTAINER[:12]}",
    ),
    "v2 podman of a user": (
        f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{CONTAINER}.scope\n",
        "",
    ),
    "v2 a slice alone": ("0::/system.slice\n", ""),
    "v2 a scope that is no container": ("0::/system.slice/run-r7.scope\n", ""),
    "v2 a digit short of a container": (f"0::/docker/{CONTAINER[:-1]}\n", ""),
    "the root": ("0::/\n", ""),
    "none": ("", ""),
    "outside a namespace": ("0::/../../other.service/x\n", "other.service"),
    "nonsense": ("what\n::\n0:\n", ""),
}


@pytest.mark.parametrize(("text", "unit"), CGROUPS.values(), ids=CGROUPS.keys())
def test_a_cgroup_names_its_unit_or_container(text: str, unit: str) -> None:
    """What an administrator or a runtime named counts, never what the process could name itself."""
    assert unit_of(text) == unit


def test_a_tenant_is_uid_and_unit_and_sub_tenant() -> None:
    """The parts that are there, in this order."""
    service = "0::/system.slice/vllm.service\n"
    assert tenant_of(uid=1000, cgroup="0::/\n") == "uid-1000"
    assert tenant_of(uid=1000, cgroup=service) == "uid-1000/vllm.service"
    assert tenant_of(uid=0, cgroup=service, sub_tenant="team-a") == "uid-0/vllm.service+team-a"
    assert tenant_of(uid=0, cgroup="", sub_tenant="team.a_1") == "uid-0+team.a_1"


@pytest.mark.parametrize("name", ["A", "a/b", "a b", "ä", "x" * 65, "vllm.service", "container-1"])
def test_a_sub_tenant_that_could_be_another_tenant_is_refused(name: str) -> None:
    """No sub-tenant may look like a path, a unit or a container."""
    with pytest.raises(InvalidRequest, match=r"sub-tenant .*(AQUA_TENANT|another name)"):
        tenant_of(uid=1000, cgroup="0::/\n", sub_tenant=name)


@pytest.mark.parametrize("name", ["(vllm)", "a b", "x) S 1 2 3 (y", ")("])
def test_start_ticks_survive_any_process_name(name: str) -> None:
    """The name in /proc/PID/stat is the process's own and may hold anything."""
    fields = " ".join(str(number) for number in range(3, 53))
    assert start_ticks_of(f"42 ({name}) {fields}") == 22


def test_the_kernel_says_who_connected(tmp_path: Path) -> None:
    """Pid, uid and start time are the peer's, and its pidfd tells its death."""
    with peer_process(tmp_path) as (child, connection):
        peer = peer_of(connection)
        try:
            assert peer.process.pid == child.pid
            assert peer.process.uid == os.getuid() == peer_uid(connection)
            assert peer.process.start_ticks == read_start_ticks(child.pid)
            assert peer.cgroup == Path(f"/proc/{child.pid}/cgroup").read_text()
            assert not has_ended(peer.pidfd)
            child.kill()
            child.wait()
            assert has_ended(peer.pidfd)
        finally:
            os.close(peer.pidfd)


def test_a_peer_that_has_ended_is_not_taken_for_another(tmp_path: Path) -> None:
    """What /proc says of a pid whose process is gone is not believed."""
    with peer_process(tmp_path) as (child, connection):
        child.kill()
        child.wait()
        with pytest.raises(PeerGone):
            peer_of(connection)


def test_a_peer_that_ends_while_it_is_looked_at_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read last may be of another process that has its pid by now: the pidfd tells."""
    with peer_process(tmp_path) as (child, connection):

        def ends_meanwhile(pid: int) -> int:
            ticks = read_start_ticks(pid)
            child.kill()
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # its /proc stays until it is reaped
            return ticks

        monkeypatch.setattr(processes, "read_start_ticks", ends_meanwhile)
        with pytest.raises(PeerGone, match="has ended"):
            peer_of(connection)


def test_kernels_without_a_peer_pidfd_compare_start_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older way finds the same process, and refuses one that started after the connection."""
    monkeypatch.setattr(processes, "_SO_PEERPIDFD", 9999)  # no such option
    with peer_process(tmp_path) as (child, connection):
        peer = peer_of(connection)
        os.close(peer.pidfd)
        assert peer.process.pid == child.pid
        monkeypatch.setattr(processes, "read_start_ticks", lambda _pid: 2**62)
        with pytest.raises(PeerGone, match="another"):
            peer_of(connection)
        child.kill()
        child.wait()
        with pytest.raises(PeerGone):
            peer_of(connection)


def test_a_process_in_a_hidden_pid_namespace_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel gives pid 0 for it; the daemon can't watch such a process."""
    monkeypatch.setattr(processes, "_credentials", lambda _connection: (0, 1000, 1000))
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(NotPermitted, match="hostPID"):
        peer_of(ours)


class peer_process:  # noqa: N801 - it is used as a function
    """A process that is connected to us, and our end of the connection."""

    def __init__(self, directory: Path) -> None:
        self._path = str(directory / "s")

    def __enter__(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._path)
            listener.listen()
            self._child = subprocess.Popen(
                [sys.executable, "-c", CONNECT, self._path], stdin=subprocess.PIPE
            )
            self._connection, _ = listener.accept()
        return self._child, self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._child.kill()
        self._child.communicate()
