"""Programs that run as other users, for tests that run as root.

Everything is imported as root, then the program drops to its user: the interpreter may lie where no
other user can read. What a program does is in its own module, a function of `Asked`.
"""

from __future__ import annotations

import grp
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import pytest

from tests.nodes import END_SECONDS, Node, environment, read_line

ALICE, MALLORY = 41001, 41002  # uids that no account of a machine has
START_SECONDS = 60.0  # importing torch on a busy machine

needs_root = pytest.mark.usefixtures("root")  # which alone may run programs as others


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a program is told."""

    role: str
    uid: int
    groups: tuple[int, ...]
    socket: str


# What a program does until a moment of the monotonic clock, and what came of it.
Role = Callable[[Asked, float], Mapping[str, object]]


class Program:
    """A program of another user; it says one line when it begins, and one for each line it is told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid
        self.hear()

    def hear(self, *, seconds: float = START_SECONDS) -> dict[str, object]:
        """The next line that it says."""
        assert self._process.stdout is not None
        line = read_line(self._process.stdout, seconds=seconds)
        assert line, f"{self._process.args!r} ended without a word"
        found: dict[str, object] = json.loads(line)
        return found

    def tell(self, seconds: float) -> None:
        """Have it do what it does for so long."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """SIGKILL, and wait for it."""
        self._process.kill()
        self._process.wait(END_SECONDS)

    def ask(self, seconds: float) -> dict[str, object]:
        """Tell, and hear what came of it."""
        self.tell(seconds)
        return self.hear()


@contextmanager
def running_as(
    uid: int,
    module: str,
    role: str,
    node: Node,
    *,
    groups: tuple[int, ...] = (),
    variables: Mapping[str, str] | None = None,
) -> Iterator[Program]:
    """A program of *uid* that is ready; it is killed at the end of the block."""
    asked = Asked(role=role, uid=uid, socket=node.socket, groups=groups)
    process = subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(asdict(asked))],
        env=environment(**(variables or {})),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Program(process)
    finally:
        process.kill()
        process.communicate(timeout=END_SECONDS)


def run(roles: Mapping[str, Role]) -> None:
    """The program: warm up as root, become the user for good, and do as told, time after time."""
    found = json.loads(sys.argv[1])
    asked = Asked(**{**found, "groups": tuple(found["groups"])})
    role = roles[asked.role]
    role(asked, 0.0)  # what is imported late is imported now
    os.setgroups(asked.groups)
    os.setgid(asked.uid)
    os.setuid(asked.uid)
    _say({"ready": True})
    for line in sys.stdin:
        _say(role(asked, time.monotonic() + float(line)))


def _say(fields: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def two_groups() -> tuple[grp.struct_group, grp.struct_group]:
    """Of this machine, neither root's nor the one for unknown groups: the sockets', and another."""
    found = sorted((one.gr_gid, one) for one in grp.getgrall() if 0 < one.gr_gid < 65534)
    (_, first), (_, second), *_ = found
    return first, second


def let_in(node: Node) -> None:
    """Other users may go through the node's directory; its sockets guard themselves."""
    node.directory.chmod(0o711)
