"""A command run in our place: signals passed on, its exit status ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

PASSED_ON = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_FROM_A_TERMINAL = {signal.SIGINT, signal.SIGQUIT}
_SIGNALLED = 128  # what shells add to a signal's number


@contextmanager
def started(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run *command*; whatever signal comes to us meanwhile goes to it.

    Raises:
        OSError: it can't be started.
    """
    children: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        # A terminal sends Ctrl-C to the whole group: the child has it already.
        if children and number in _FROM_A_TERMINAL and _is_in_front():
            return
        for child in children:
            child.send_signal(number)
        if not children:
            early.append(number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        child = subprocess.Popen(list(command))
        children.append(child)
        for number in early:
            child.send_signal(number)
        yield child
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_status(child: subprocess.Popen[bytes]) -> int:
    """Wait for its end; as a shell would report it."""
    status = child.wait()
    return status if status >= 0 else _SIGNALLED - status


def await_end(child: subprocess.Popen[bytes], *, at_most_seconds: float) -> None:
    """Return when it has ended, or when the time is over."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(at_most_seconds)


def _is_in_front() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):  # no terminal
        return False
