"""Holders' proofs: kept once a session, dropped with its last slab, and believed only together."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from socket import socket, socketpair

import pytest

from aqua_daemon.keeper.proofs import Proofs
from tests.nodes import wait_until


class Process:
    """A process, and both ends of a sentinel."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self.ours, self.theirs = socketpair()

    def proof(self) -> tuple[int, int]:
        return os.pidfd_open(self.process.pid), os.dup(self.ours.fileno())

    def end(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=20)


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process()
    yield made
    made.end()
    made.ours.close()
    made.theirs.close()


@pytest.fixture
def proofs() -> Iterator[Proofs]:
    with contextlib.closing(Proofs()) as kept:
        yield kept


def keep(proofs: Proofs, process: Process) -> tuple[int, int]:
    pidfd, sentinel = process.proof()
    proofs.keep("session", pidfd=pidfd, sentinel=sentinel)
    return pidfd, sentinel


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_a_session_has_one_proof_until_its_last_slab_goes(proofs: Proofs, process: Process) -> None:
    """Copies are closed as they come, the first ones with the last slab."""
    first, second = keep(proofs, process), keep(proofs, process)
    assert [is_open(descriptor) for descriptor in first + second] == [True, True, False, False]
    proofs.drop("session")
    assert proofs.of("session").pidfd == first[0]
    proofs.drop("session")
    assert proofs.all() == ()
    assert not any(is_open(descriptor) for descriptor in first)


def test_only_both_together_prove_that_a_holder_is_gone(proofs: Proofs, process: Process) -> None:
    """A dead process whose child keeps the sentinel is not proved gone, nor is a living one."""
    keep(proofs, process)
    assert not proofs.of("session").has_ended()
    process.end()
    assert not proofs.of("session").has_ended()
    process.theirs.close()
    wait_until(proofs.of("session").has_ended, what="both have ended")


def test_a_sentinel_that_is_written_into_has_not_ended(proofs: Proofs, process: Process) -> None:
    """Words are no death, whatever a client sends where nothing is to be sent."""
    keep(proofs, process)
    process.end()
    sender: socket = process.theirs
    sender.sendall(b"I am alive")
    assert not proofs.of("session").has_ended()


def test_a_closed_sentinel_of_a_living_process_proves_nothing(
    proofs: Proofs, process: Process
) -> None:
    """It may map what it holds as long as it lives."""
    keep(proofs, process)
    process.theirs.close()
    assert not proofs.of("session").has_ended()
