"""Groups of processes that torch runs: spawned, each with a session and a home GPU of its own."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.end_to_end.rank import END, LOOK, WORLD_SIZE, spawned
from tests.end_to_end.test_client_deaths import PROMISE_SECONDS, held_bytes
from tests.nodes import MIB, REPOSITORY, Node, environment, running_node, wait_until

START_SECONDS = 80.0  # four of them import torch on a busy machine


@pytest.fixture(scope="module", autouse=True)
def tracker() -> None:
    """Spawning starts a process of Python's own, which stays: it is none of a test's descriptors."""
    resource_tracker.ensure_running()


@dataclass(frozen=True, kw_only=True)
class Member:
    """A rank's process, and the way to ask it."""

    process: BaseProcess
    pipe: Connection

    def answer(self) -> object:
        assert self.pipe.poll(START_SECONDS), "no answer"
        return self.pipe.recv()

    def look(self) -> dict[str, object]:
        self.pipe.send(LOOK)
        found = self.answer()
        assert isinstance(found, dict)
        return found


@contextmanager
def running_group(node: Node, directory: Path) -> Iterator[list[Member]]:
    """All ranks, which have exchanged what they fetched."""
    context = multiprocessing.get_context("spawn")
    members: list[Member] = []
    try:
        for rank in range(WORLD_SIZE):
            mine, theirs = context.Pipe()
            words = (rank, f"file://{directory}/rendezvous", theirs, node.socket)
            process = context.Process(target=spawned, args=words)
            process.start()
            theirs.close()
            members.append(Member(process=process, pipe=mine))
        assert [member.answer() for member in members] == [True] * WORLD_SIZE
        yield members
    finally:
        for member in members:
            member.process.kill()
            member.process.join()
            member.process.close()
            member.pipe.close()


@pytest.mark.limit(150)
def test_one_rank_of_a_group_is_killed_and_the_others_go_on(tmp_path: Path) -> None:
    """Each borrows for its own GPU; the dead one's slabs are free, nobody else's is touched."""
    with (
        running_node(gpus=WORLD_SIZE, gpu_bytes=128 * MIB) as node,
        running_group(node, tmp_path) as members,
    ):
        found = [member.look() for member in members]
        for rank, one in enumerate(found):
            assert one["intact"]
            assert one["tiers"] == {"peer"}
            assert isinstance(one["gpus"], set)
            assert f"SHM-{rank}" not in one["gpus"]
        lent = [int(str(one["bytes"])) for one in found]
        assert held_bytes(node) == sum(lent)
        killed = members.pop()
        killed.process.kill()
        killed.process.join()
        wait_until(
            lambda: held_bytes(node) == sum(lent[:-1]), seconds=PROMISE_SECONDS, what="it is free"
        )
        assert all(member.look()["intact"] for member in members)
        for member in members:
            member.pipe.send(END)
            member.process.join(PROMISE_SECONDS)
            assert member.process.exitcode == 0
        wait_until(lambda: held_bytes(node) == 0, seconds=PROMISE_SECONDS, what="all is free")
        killed.process.close()
        killed.pipe.close()


@pytest.mark.long
@pytest.mark.limit(150)
def test_a_group_that_torch_launches() -> None:
    """`torch.distributed.run` and its agent, which uses nothing of the library."""
    with running_node(gpus=WORLD_SIZE, gpu_bytes=128 * MIB) as node:
        words = ["--standalone", "--nproc-per-node", str(WORLD_SIZE), "-m", "tests.end_to_end.rank"]
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *words],
            cwd=REPOSITORY,
            env=environment(
                AQUA_SOCKET=node.socket, AQUA_CONNECT_SECONDS="10", GLOO_SOCKET_IFNAME="lo"
            ),
            capture_output=True,
            text=True,
            timeout=120.0,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        wait_until(lambda: held_bytes(node) == 0, seconds=PROMISE_SECONDS, what="all is free")
