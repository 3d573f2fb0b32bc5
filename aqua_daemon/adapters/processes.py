"""Who is at the other end of a Unix socket, by the kernel's word.

Covers a peer's identity (pid, start time, uid, groups, a pidfd that can never mean another process)
and the tenant that it belongs to (uid, and systemd unit or container). Does not cover what a tenant or
an admin may do: that is for the broker.

A pid alone proves nothing, it may have been given to another process since. So what /proc says of
a pid is believed only while the pidfd, looked at *afterwards*, still has a living process.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from aqua_daemon.core.errors import InvalidRequest, NotPermitted
from aqua_daemon.core.model import SUB_TENANT_MARK, ProcessIdentity, TenantName

_SO_PEERPIDFD = 77  # Linux 6.5; Python has no name for it
_SO_PEERGROUPS = 59  # Linux 4.13
_LARGEST_OPTION_BYTES = 1024  # that Python's getsockopt takes: 256 groups
_UCRED = struct.Struct("iII")
_PIDFD = struct.Struct("i")
_GID = struct.Struct("I")
_START_TICKS_FIELD = 22  # of /proc/PID/stat, counted from 1
_FIELDS_THROUGH_NAME = 2

_SUB_TENANT = re.compile(r"[a-z0-9._-]{1,64}")
_CONTAINER = re.compile(r"(?:^|[-:])([0-9a-f]{64})(?:\.scope)?$")
_CONTAINER_ID_DIGITS = 12  # what people see in `docker ps`
# Runtimes put containers below their own unit; any other unit's sub-cgroups are its own business.
_RUNTIMES = frozenset({"containerd.service", "crio.service", "docker.service", "podman.service"})
# Where the name of a unit or container is looked for: cgroup v2, systemd's own v1 hierarchy, then
# v1 controllers that container runtimes always set.
_HIERARCHIES = ("", "name=systemd", "memory", "pids")


class PeerGone(ConnectionError):
    """The process at the other end has ended, or can't be told from a later one of its pid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A process that connected. Whoever gets this owns `pidfd`."""

    process: ProcessIdentity
    pidfd: int
    cgroup: str  # the text of its /proc/PID/cgroup
    groups: frozenset[int] = frozenset()  # of which it was a member when it connected


def peer_uid(connection: socket.socket) -> int:
    """The uid that the other end connected with."""
    _pid, uid, _gid = _credentials(connection)
    return uid


def peer_of(connection: socket.socket) -> Peer:
    """Ask the kernel who connected.

    Raises:
        PeerGone: the process has ended.
        NotPermitted: it lives in a PID namespace that this process can't see.
    """
    pid, uid, gid = _credentials(connection)
    if pid == 0:
        msg = (
            "your process is in a PID namespace that the daemon can't see into; "
            "run the daemon in the host's PID namespace (hostPID: true)"
        )
        raise NotPermitted(msg)
    pidfd = _peer_pidfd(connection, pid)
    try:
        start_ticks = read_start_ticks(pid)
        cgroup = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace")
        groups = frozenset({gid, *_supplementary_groups(connection, pid)})
        if has_ended(pidfd):
            raise PeerGone(f"process {pid} has ended")
    except OSError as error:
        os.close(pidfd)
        if isinstance(error, PeerGone):
            raise
        raise PeerGone(f"process {pid} has ended: {error.strerror}") from error
    process = ProcessIdentity(pid=pid, start_ticks=start_ticks, uid=uid)
    return Peer(process=process, pidfd=pidfd, cgroup=cgroup, groups=groups)


def has_ended(pidfd: int) -> bool:
    """Whether the process of a pidfd is gone."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def read_start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot.

    Raises:
        OSError: no such process.
    """
    return start_ticks_of(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace"))


def start_ticks_of(stat: str) -> int:
    """Field 22 of a /proc/PID/stat text; the name before it may hold blanks and brackets."""
    after_name = stat.rpartition(")")[2].split()
    return int(after_name[_START_TICKS_FIELD - _FIELDS_THROUGH_NAME - 1])


def groups_of(status: str) -> frozenset[int]:
    """The supplementary groups that a /proc/PID/status text names."""
    found = (line for line in status.splitlines() if line.startswith("Groups:"))
    return frozenset(int(word) for word in next(found, "").removeprefix("Groups:").split())


def tenant_of(*, uid: int, cgroup: str, sub_tenant: str = "") -> TenantName:
    """The tenant of a process with this uid and this /proc/PID/cgroup text.

    Raises:
        InvalidRequest: the sub-tenant's name is not one, or could be taken for a unit's.
    """
    parts = [f"uid-{uid}"]
    unit = unit_of(cgroup)
    if unit:
        parts.append(unit)
    if sub_tenant:
        _check_sub_tenant(sub_tenant)
        parts[-1] += SUB_TENANT_MARK + sub_tenant
    return TenantName("/".join(parts))


def unit_of(cgroup: str) -> str:
    """The systemd service or container that a /proc/PID/cgroup text names; empty if neither."""
    paths: dict[str, str] = {}
    for line in cgroup.splitlines():
        _number, first_colon, rest = line.partition(":")
        names, second_colon, path = rest.partition(":")
        if first_colon and second_colon:
            paths.update(dict.fromkeys(names.split(","), path))
    found = (_unit_in_path(paths[name]) for name in _HIERARCHIES if name in paths)
    return next((unit for unit in found if unit), "")


def _unit_in_path(path: str) -> str:
    unit = ""
    for part in path.split("/"):
        if part == "user.slice":
            return ""  # a user names what is below here: it must not make tenants of its own
        container = _CONTAINER.search(part)
        if container and (not unit or unit in _RUNTIMES):
            return f"container-{container[1][:_CONTAINER_ID_DIGITS]}"
        if not unit and part.endswith(".service"):
            unit = part
    return unit


def _check_sub_tenant(name: str) -> None:
    if _SUB_TENANT.fullmatch(name) is None:
        msg = (
            f"sub-tenant {name[:80]!r} is no name for one: use 1 to 64 of a-z, 0-9, "
            "dot, underscore and dash (AQUA_TENANT)"
        )
        raise InvalidRequest(msg)
    if name.endswith(".service") or name.startswith("container-"):
        msg = f"sub-tenant {name!r} could be taken for a unit or container; choose another name"
        raise InvalidRequest(msg)


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(packed)
    return pid, uid, gid


def _supplementary_groups(connection: socket.socket, pid: int) -> frozenset[int]:
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _LARGEST_OPTION_BYTES)
    except OSError as error:
        if error.errno not in {errno.ERANGE, errno.ENOPROTOOPT}:
            raise
        # More than fit, or a kernel before 4.13.
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        return groups_of(status)
    return frozenset(group for (group,) in _GID.iter_unpack(packed))


def _peer_pidfd(connection: socket.socket, pid: int) -> int:
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, _PIDFD.size)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return _pidfd_by_start_time(pid)
        raise PeerGone(f"process {pid} has ended: {error.strerror}") from error
    (pidfd,) = _PIDFD.unpack(packed)
    return int(pidfd)


def _pidfd_by_start_time(pid: int) -> int:
    """Before Linux 6.5: a process that started after the connection was accepted is another one."""
    seconds = time.clock_gettime(time.CLOCK_BOOTTIME)
    accepted_ticks = int(seconds * os.sysconf("SC_CLK_TCK"))
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise PeerGone(f"process {pid} has ended: {error.strerror}") from error
    try:
        started_later = read_start_ticks(pid) > accepted_ticks
    except OSError:
        started_later = True
    if started_later:
        os.close(pidfd)
        raise PeerGone(f"process {pid} has ended, its pid may have gone to another")
    return pidfd
