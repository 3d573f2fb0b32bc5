"""Looks at the machine, and writes down what is there. Judges nothing, changes nothing.

Whatever can't be found out is written down as such: doctor has to work on a machine where most
things are broken. What can hang (systemd, NVML, the daemon) gets a limit.
"""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from aqua_daemon.config import DEFAULTS
from aqua_daemon.ctl.doctor.machine import (
    Caller,
    Cgroups,
    Daemon,
    Holder,
    Machine,
    Socket,
    Unit,
)
from aqua_daemon.ctl.doctor.nvidia import examine_nvidia
from aqua_daemon.ctl.doctor.surroundings import namespaces, numa_nodes
from aqua_daemon.ctl.link import Refused, Unreachable, fetch_state

PROC = Path("/proc")
_SO_PEERPIDFD = 77  # Linux 6.5; Python has no name for it
_CREDENTIALS_BYTES = 12
_UNIT_SECONDS = 5.0
_METRIC = b"aqua_build_info"
_MOST_METRICS_BYTES = 2**20


def examine(path: Path, *, seconds: float, metrics: str | None = None) -> Machine:
    """Everything about this machine and the daemon at *path*, which may be down."""
    hidepid, proc_group = proc_options((PROC / "mounts").read_text())
    shm_total, shm_free = _shared_memory(Path("/dev/shm"))  # noqa: S108 - it is what is looked at
    memfd_trouble, sealing_trouble = _memory_files()
    daemon = _daemon(path, seconds=seconds)
    address = metrics or _metrics_address(daemon.pid)
    return Machine(
        kernel=os.uname().release,
        has_peer_pidfd=_has_peer_pidfd(),
        shm_total_bytes=shm_total,
        shm_free_bytes=shm_free,
        memfd_trouble=memfd_trouble,
        sealing_trouble=sealing_trouble,
        hidepid=hidepid,
        proc_group=proc_group,
        cgroups=cgroups((PROC / "self" / "cgroup").read_text()),
        units=_units(),
        socket=look_at_socket(Path(f"{path}.presence")),
        caller=_caller(),
        daemon=daemon,
        metrics=address,
        metrics_holder=holder_of(address, seconds=seconds),
        nvidia=examine_nvidia(seconds=seconds),
        namespaces=namespaces(daemon_pid=daemon.pid),
        numa=numa_nodes(),
    )


def proc_options(mounts: str) -> tuple[str, str]:
    """The value of hidepid, and the group that sees all the same, from a /proc/mounts text."""
    found = ""
    for line in mounts.splitlines():
        fields = line.split()
        if fields[1:3] == ["/proc", "proc"]:
            found = fields[3]  # the last one mounted is what is seen
    options = dict(word.partition("=")[::2] for word in found.split(","))
    group = options.get("gid", "")
    return options.get("hidepid", ""), group_name(int(group)) if group else ""


def cgroups(own: str) -> Cgroups:
    """Which hierarchies there are, from a /proc/PID/cgroup text."""
    names = [line.split(":")[1] for line in own.splitlines() if line.count(":") > 1]
    if not names:
        return Cgroups.NONE
    return Cgroups.UNIFIED if names == [""] else Cgroups.LEGACY


def units_of(shown: str) -> tuple[Unit, ...]:
    """Units, from what `systemctl show -p Id,LoadState,ActiveState,UnitFileState` prints."""
    units = []
    for block in shown.strip().split("\n\n"):
        fields = dict(line.partition("=")[::2] for line in block.splitlines())
        if "Id" in fields:
            units.append(
                Unit(
                    name=fields["Id"],
                    load=fields.get("LoadState", ""),
                    active=fields.get("ActiveState", ""),
                    enabled=fields.get("UnitFileState", ""),
                )
            )
    return tuple(units)


def look_at_socket(path: Path) -> Socket:
    """The socket's place in the file system; says nothing of who listens."""
    try:
        found = path.lstat()
    except PermissionError:
        return Socket(path=str(path), may_look=False)
    except OSError:
        return Socket(path=str(path), is_there=False)
    return Socket(
        path=str(path),
        is_socket=path.is_socket(),
        mode=found.st_mode & 0o777,
        owner=found.st_uid,
        group=found.st_gid,
        group_name=group_name(found.st_gid),
    )


def group_name(gid: int) -> str:
    """A group's name, or its number where it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def open_files_limit(limits: str) -> int | None:
    """The soft limit, from a /proc/PID/limits text."""
    for line in limits.splitlines():
        words = line.split()
        if words[:3] == ["Max", "open", "files"]:
            return int(words[3]) if words[3].isdigit() else None
    return None


def metrics_flag(arguments: list[str]) -> str | None:
    """What the daemon was told about its metrics; None: nothing."""
    for number, word in enumerate(arguments):
        if word == "--metrics":
            return next(iter(arguments[number + 1 :]), None)
        if word.startswith("--metrics="):
            return word.partition("=")[2]
    return None


def holder_of(address: str, *, seconds: float) -> Holder:
    """Who serves metrics at *address*, `HOST:PORT`."""
    if address.endswith(":0"):
        return Holder.UNKNOWN
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=seconds) as reply:
            is_ours = _METRIC in reply.read(_MOST_METRICS_BYTES)
    except urllib.error.HTTPError:
        return Holder.ANOTHER
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return Holder.NOBODY if isinstance(reason, ConnectionRefusedError) else Holder.ANOTHER
    except ValueError:  # what answers does not speak HTTP
        return Holder.ANOTHER
    return Holder.DAEMON if is_ours else Holder.ANOTHER


def _daemon(path: Path, *, seconds: float) -> Daemon:
    pid = _listener_pid(Path(f"{path}.presence"), seconds=seconds)
    limit = None
    if pid:
        try:
            limit = open_files_limit((PROC / str(pid) / "limits").read_text())
        except OSError:  # another PID namespace, or hidden
            limit = None
    try:
        state = fetch_state(path, seconds=seconds)
    except (Unreachable, Refused) as error:
        return Daemon(state=None, silence=str(error), pid=pid, open_files_limit=limit)
    return Daemon(state=state, pid=pid, open_files_limit=limit)


def _listener_pid(path: Path, *, seconds: float) -> int:
    """The process that listens, by the kernel's word; 0 when nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(str(path))
            packed = connection.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS_BYTES
            )
        except OSError:
            return 0
    return int.from_bytes(packed[:4], "little", signed=True)


def _metrics_address(pid: int) -> str:
    try:
        arguments = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        arguments = []
    return metrics_flag(arguments) or DEFAULTS["metrics"]


def _has_peer_pidfd() -> bool:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            packed = ours.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
        except OSError:
            return False
    os.close(int.from_bytes(packed, "little", signed=True))
    return True


def _shared_memory(place: Path) -> tuple[int | None, int]:
    if not place.is_mount():
        return None, 0
    found = os.statvfs(place)
    return found.f_frsize * found.f_blocks, found.f_frsize * found.f_bavail


def _memory_files() -> tuple[str, str]:
    try:
        descriptor = os.memfd_create("aqua-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        return str(error.strerror), ""
    try:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except OSError as error:
        return "", str(error.strerror)
    finally:
        os.close(descriptor)
    return "", ""


def _units() -> tuple[Unit, ...] | None:
    words = ["systemctl", "show", "--no-pager", "-p", "Id,LoadState,ActiveState,UnitFileState"]
    words += ["aqua-daemon.service", "aqua-keeper@*.service"]
    try:
        run = subprocess.run(
            words, capture_output=True, text=True, timeout=_UNIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return units_of(run.stdout) if run.returncode == 0 else None


def _caller() -> Caller:
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"uid {uid}"
    return Caller(name=name, uid=uid, groups=frozenset({os.getegid(), *os.getgroups()}))
