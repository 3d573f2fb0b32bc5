"""A machine with a real systemd as its first process, in namespaces of its own.

    with running_machine(directory) as machine:
        machine.run("systemctl", "is-system-running")

Its root is this machine's, with all that is written kept in memory and gone at the end; its
processes, mounts, control groups, network and host name are its own. The programs are this
checkout's, under /opt, where units that see no home directory find them. Needs root, and a kernel
that allows all that.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.conftest import NOT_RUN_HERE, require_path, require_root, require_tool
from tests.end_to_end.control_groups import cgroup2_mount
from tests.nodes import REPOSITORY, wait_until

SYSTEMD = Path("/usr/lib/systemd/systemd")
PYTHON = "/opt/python/bin/python3"
IMPORTS = "/opt/checkout:/opt/checkout/protos:/opt/packages"
LIBRARIES = "/opt/python/lib"  # an interpreter that is shared code looks for itself where it was
BOOT_SECONDS = 60.0
NOT_ALLOWED = ("ermission denied", "not permitted", "Read-only file system", "unknown filesystem")
NAMESPACES = ("--pid", "--fork", "--mount", "--cgroup", "--uts", "--ipc", "--net", "--kill-child")
# $1: a directory; then those of the interpreter, the packages and the checkout.
BOOT = """
set -e
mount -t tmpfs tmpfs "$1" && cd "$1" && mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root && cd root
mkdir -p opt/python opt/packages opt/checkout opt/.before
mount --bind "$2" opt/python && mount --bind "$3" opt/packages && mount --bind "$4" opt/checkout
mount -t proc proc proc
mount --bind proc/sys proc/sys && mount -o remount,ro,bind proc/sys  # the kernel's settings are not its own
mount -t sysfs -o ro sysfs sys && mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs dev && mkdir dev/shm dev/pts
for one in null zero full random urandom tty; do touch dev/$one; mount --bind /dev/$one dev/$one; done
mount -t tmpfs tmpfs dev/shm && mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx && ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs run && mount -t tmpfs tmpfs tmp
pivot_root . opt/.before && cd / && umount -l /opt/.before
container=test exec /usr/lib/systemd/systemd --system --unit=basic.target --show-status=no
"""
ENTER_GROUP = 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"'


class Machine:
    """It runs; `first` is its first process."""

    def __init__(self, first: int) -> None:
        self._enter = ["nsenter", "-t", str(first), *("-m", "-p", "-C", "-u", "-i", "-n")]

    def run(self, *words: str) -> str:
        """What a command prints there; it must succeed."""
        run = subprocess.run(
            [*self._enter, *words], capture_output=True, text=True, timeout=60, check=False
        )
        assert run.returncode == 0, f"{words}: {run.stdout}{run.stderr}{self.journal()}"
        return run.stdout

    def unit_command(self, *words: str, **variables: str) -> list[str]:
        """How *words* are run there as a unit of their own, on this terminal's pipes."""
        pipe = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", "--same-dir"]
        settings = [f"--setenv={name}={value}" for name, value in variables.items()]
        return [*self._enter, *pipe, *settings, *words]

    def write(self, path: str, text: str, *, mode: int) -> None:
        """Make a file there, and the directories that it is in."""
        script = 'mkdir -p "${1%/*}" && printf %s "$2" > "$1" && chmod "$3" "$1"'
        self.run("bash", "-c", script, "bash", path, text, f"{mode:o}")

    def journal(self) -> str:
        """The last that its services said."""
        words = ["journalctl", "-n", "40", "--no-pager", "-o", "cat"]
        return subprocess.run(
            [*self._enter, *words], capture_output=True, text=True, timeout=60, check=False
        ).stdout[-8000:]


@contextlib.contextmanager
def running_machine(directory: Path) -> Iterator[Machine]:
    """One that has started; all of it ends with the block."""
    for tool in ("bash", "unshare", "nsenter", "systemd-run"):
        require_tool(tool)
    require_path(SYSTEMD, "a machine with systemd")
    require_root()
    with _control_group() as group, (directory / "boot.log").open("w+") as log:
        shown = [sys.base_prefix, sysconfig.get_paths()["purelib"], str(REPOSITORY)]
        boot = ["unshare", *NAMESPACES, "bash", "-c", BOOT, "bash", str(directory), *shown]
        init = subprocess.Popen(
            ["bash", "-c", ENTER_GROUP, "bash", str(group), *boot],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            wait_until(lambda: init.poll() is not None or _first(init.pid), what="it begins")
            machine = Machine(_first(init.pid))
            wait_until(lambda: init.poll() is not None or _is_up(machine), seconds=BOOT_SECONDS)
            if init.poll() is not None:
                log.seek(0)
                _not_made(log.read())
            yield machine
        finally:
            init.kill()
            init.wait()


def _not_made(words: str) -> NoReturn:
    """The test is not run where the kernel allows no such machine; anything else is a failure."""
    if any(one in words for one in NOT_ALLOWED):
        pytest.skip(f"{NOT_RUN_HERE}a machine can't be made: {words}")
    pytest.fail(f"a machine can't be made: {words}")


@contextlib.contextmanager
def _control_group() -> Iterator[Path]:
    group = cgroup2_mount() / f"aqua-test-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        wait_until(lambda: _emptied(group), what=f"{group} is empty")


def _emptied(group: Path) -> bool:
    for place, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            Path(place).rmdir()
    return not group.exists()


def _first(unshare: int) -> int:
    """The process that `unshare` has forked; 0: none yet."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(entry.read_text().rpartition(") ")[2].split()[1]) == unshare:
                return int(entry.parent.name)
    return 0


def _is_up(machine: Machine) -> bool:
    with contextlib.suppress(AssertionError):
        machine.run("systemctl", "is-active", "--quiet", "basic.target")
        return True
    return False
