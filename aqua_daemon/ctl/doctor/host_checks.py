"""What AQUA needs of the machine, whether a daemon runs or not. Pure: a record in, findings out."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aqua_daemon.ctl.doctor.findings import Finding, fail, ok, warn
from aqua_daemon.ctl.doctor.machine import Cgroups, Machine

OLDEST_KERNEL = (5, 10)  # memory files with seals, pidfds that can be waited for
PIDFD_KERNEL = (6, 5)  # SO_PEERPIDFD
GIB = 2**30
LITTLE_SHM_BYTES = GIB
NO_SHM_BYTES = 64 * 2**20  # four of the smallest GPUs that a stand-in may be
_UPGRADE = "run a newer kernel of your distribution (uname -r shows which runs)"


def check_kernel(machine: Machine) -> Iterator[Finding]:
    """Old enough kernels lack what identity and memory files are made of."""
    found = re.match(r"(\d+)\.(\d+)", machine.kernel)
    version = (int(found[1]), int(found[2])) if found else None
    if version is None:
        yield warn("kernel", f"{machine.kernel!r} is no version that can be read", _UPGRADE)
    elif version < OLDEST_KERNEL:
        yield fail("kernel", f"{machine.kernel}: 5.10 or newer is needed", _UPGRADE)
    elif version < PIDFD_KERNEL or not machine.has_peer_pidfd:
        yield warn(
            "kernel",
            f"{machine.kernel} has no SO_PEERPIDFD (6.5): clients are told apart by their start "
            "time instead, which leaves a race of one clock tick",
            _UPGRADE,
        )
    else:
        yield ok("kernel", f"{machine.kernel}, with SO_PEERPIDFD")


def check_shared_memory(machine: Machine) -> Iterator[Finding]:
    """Stand-in GPUs live there, and so do clients' host buffers."""
    total, free = machine.shm_total_bytes, machine.shm_free_bytes
    if total is None:
        yield fail("shared memory", "it is not mounted", "mount -t tmpfs tmpfs /dev/shm")
        return
    figures = f"{free / GIB:.1f} of {total / GIB:.1f} GiB of /dev/shm are free"
    if free < NO_SHM_BYTES:
        remedy = "remove what is old in /dev/shm, or mount -o remount,size=8G /dev/shm"
        yield fail("shared memory", figures, remedy)
    elif free < LITTLE_SHM_BYTES:
        remedy = "mount -o remount,size=8G /dev/shm (in a container: --shm-size=8g)"
        yield warn("shared memory", f"{figures}: few stand-in GPUs fit", remedy)
    else:
        yield ok("shared memory", figures)


def check_memory_files(machine: Machine) -> Iterator[Finding]:
    """Slabs of stand-in GPUs are memory files, and sealed so that nobody can shrink one."""
    if machine.memfd_trouble:
        yield fail(
            "memory files",
            f"memfd_create fails: {machine.memfd_trouble}",
            "allow memfd_create in the seccomp profile of this container or service",
        )
    elif machine.sealing_trouble:
        yield warn(
            "memory files",
            f"they can't be sealed ({machine.sealing_trouble}): a tenant could shrink a slab",
            "allow F_ADD_SEALS in the seccomp profile of this container or service",
        )
    else:
        yield ok("memory files", "can be made and sealed")


def check_processes_seen(machine: Machine) -> Iterator[Finding]:
    """The daemon reads the start time and cgroup of each client in /proc."""
    if machine.hidepid in {"", "0", "off"}:
        yield ok("/proc", "processes of other users can be seen")
    elif machine.proc_group:
        yield warn(
            "/proc",
            f"hidepid={machine.hidepid}: only group {machine.proc_group} sees other users' "
            "processes",
            f"add the daemon's user to it: usermod -aG {machine.proc_group} aqua",
        )
    else:
        yield fail(
            "/proc",
            f"hidepid={machine.hidepid}: the daemon, unless it is root, can't tell who its "
            "clients are",
            "mount -o remount,hidepid=0 /proc, or give it gid= of a group with the daemon's user",
        )


def check_cgroups(machine: Machine) -> Iterator[Finding]:
    """Services and containers of one uid are told apart by their cgroup."""
    match machine.cgroups:
        case Cgroups.UNIFIED:
            yield ok("cgroups", "v2")
        case Cgroups.LEGACY:
            yield warn(
                "cgroups",
                "v1: units and containers are told apart by its name=systemd, memory or pids "
                "hierarchy",
                "boot with systemd.unified_cgroup_hierarchy=1 when you can",
            )
        case Cgroups.NONE:
            yield fail(
                "cgroups",
                "none are mounted: services of one uid are one tenant and can't be told apart",
                "mount -t cgroup2 none /sys/fs/cgroup",
            )
