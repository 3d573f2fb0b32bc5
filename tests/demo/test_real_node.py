"""The parts that meet a real daemon: its ready line, its metrics, its end, and an owner refused."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aqua_client.demo.gauges import read_gpus
from aqua_client.demo.neighbours import neighbour_command
from aqua_client.demo.node import Node
from aqua_client.demo.plan import MIB


@pytest.fixture
def node() -> Iterator[Node]:
    """One that is ready."""
    with Node() as node:
        node.ready()
        yield node


def keeper_pid(node: Node) -> int:
    """Who listens where owners come."""
    return listener_pid(node.keeper_socket)


def listener_pid(path: str) -> int:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)
        found = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, _, _ = struct.unpack("3i", found)
    assert isinstance(pid, int)
    return pid


def test_a_node_has_eight_gpus_with_nothing_lent(node: Node) -> None:
    """As its metrics say."""
    gpus = read_gpus(node.metrics)
    assert [gpu.gpu for gpu in gpus] == [f"SHM-{number}" for number in range(8)]
    assert {gpu.total for gpu in gpus} == {256 * MIB}
    assert {gpu.free for gpu in gpus} == {256 * MIB}


def test_closing_ends_the_keeper_too(node: Node) -> None:
    """The daemon leaves it running; the demo does not."""
    keeper = os.pidfd_open(keeper_pid(node))
    node.close()
    assert select.select([keeper], [], [], 10)[0]
    os.close(keeper)
    assert not Path(node.socket).parent.exists()


KILLED = """
import sys, threading
from aqua_client.demo.neighbours import neighbour_command
from aqua_client.demo.node import Node
with Node() as node:
    node.ready()
    print(node.socket, flush=True)
    threading.Event().wait()
"""


def test_a_killed_demo_takes_its_daemon_along() -> None:
    """It could clean up nothing; the kernel ends the daemon, and the keeper is then on its own."""
    demo = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    try:
        assert demo.stdout is not None
        path = demo.stdout.readline().strip()
        listeners = [listener_pid(f"{path}{end}") for end in (".presence", ".keeper-shm")]
        daemon, keeper = map(os.pidfd_open, listeners)
    finally:
        demo.kill()
        demo.communicate()
    assert select.select([daemon], [], [], 10)[0]
    assert not select.select([keeper], [], [], 0)[0]  # it outlives the daemon, as always
    signal.pidfd_send_signal(keeper, signal.SIGTERM)
    assert select.select([keeper], [], [], 10)[0]  # nothing is held there
    for process in (daemon, keeper):
        os.close(process)
    shutil.rmtree(Path(path).parent)


def test_nodes_do_not_meet(node: Node) -> None:
    """A second demo on the same machine has a node of its own."""
    with Node() as other:
        other.ready()
        assert other.socket != node.socket
        assert other.metrics != node.metrics
        assert read_gpus(other.metrics)


def test_who_has_nothing_on_a_gpu_takes_nothing_back(node: Node) -> None:
    """The owner's program fails, and says why, when it was not started as an owner."""
    owner = subprocess.run(
        [
            *(sys.executable, "-m", "aqua_client.demo.owner", "--socket", node.socket),
            *("--gpu", "SHM-1", "--lend", str(MIB), "--keeper-socket", node.keeper_socket),
        ],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    assert owner.returncode != 0
    assert "memory of its own on SHM-1" in owner.stderr
    assert "reclaimed" not in owner.stdout


def test_a_neighbour_ends_with_its_input(node: Node) -> None:
    """Whoever started it may be killed: it uses its GPUs no longer than that lives."""
    command = neighbour_command(("SHM-2", "SHM-3"), MIB, keeper_socket=node.keeper_socket)
    neighbour = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True
    )
    assert neighbour.stdout.count("loaded") == 2
