"""Grants whose answers do not get through: the slab is the client's after all, or free again.

The keeper is stopped while a slab is asked for, so that the asker is gone before it is made.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import aqua_client
from aqua_client.client import Client
from aqua_client.session import Session
from aqua_client.settings import ClientSettings
from tests.end_to_end.test_client_deaths import PROMISE_SECONDS, held_bytes
from tests.end_to_end.test_paging import noise
from tests.nodes import MIB, Node, running_node, stop_process, wait_until

TERM_SECONDS = 1.0


@contextmanager
def stopped_keeper(node: Node) -> Iterator[None]:
    """It makes no slab meanwhile, and afterwards those that were asked for."""
    pid = node.keeper_pid()
    stop_process(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def connected(node: Node, *, acquire_seconds: float) -> Iterator[Client]:
    settings = ClientSettings(
        socket_path=node.socket,
        home_gpu="SHM-0",
        connect_seconds=10.0,
        call_seconds=5.0,
        acquire_seconds=acquire_seconds,
        host_limit_bytes=64 * MIB,
    )
    with warnings.catch_warnings(), Client(settings) as client:
        warnings.simplefilter("ignore", aqua_client.AquaWarning)
        yield client


def grants(node: Node) -> float:
    """How many there were, whoever heard of them."""
    return node.scrape()['aqua_lease_grants_total{result="granted"}']


def test_a_slab_that_came_too_late_is_the_one_that_is_asked_for_next() -> None:
    """By its request's id: the keeper makes one, and it is not lost."""
    tensor = noise(MIB)
    with (
        running_node(gpus=2, gpu_bytes=64 * MIB) as node,
        connected(node, acquire_seconds=0.3) as client,
    ):
        with stopped_keeper(node):
            late = client.offload(tensor)
            assert (late.tier, late.reason) == ("host", "timeout")
        wait_until(lambda: client.stats()["leases_granted"], what="it is asked for again")
        assert grants(node) == 1
        handle = client.offload(tensor)
        assert handle.tier == "peer"
        assert grants(node) == 1
        assert torch.equal(handle.fetch(), tensor)
        assert torch.equal(late.fetch(), tensor)


def cut(node: Node, client: Client) -> None:  # noqa: ARG001 - as the other fault
    """The presence connection breaks, and the calls that are out are given up."""
    session = client._pager._lender
    assert isinstance(session, Session)
    link = session._presence._link
    assert link is not None
    link._connection.shutdown(socket.SHUT_RDWR)


def kill(node: Node, client: Client) -> None:  # noqa: ARG001 - as the other fault
    """The daemon is killed."""
    node.kill_daemon()


@pytest.mark.parametrize("fault", [cut, kill])
def test_a_slab_whose_answer_was_lost_is_free_again(fault: object) -> None:
    """Nobody names it, so it is taken back a term later, or by the next daemon."""
    tensor = noise(MIB)
    parked: list[aqua_client.OffloadedTensor] = []
    with (
        running_node(gpus=2, gpu_bytes=64 * MIB, term_seconds=TERM_SECONDS) as node,
        connected(node, acquire_seconds=20.0) as client,
    ):
        asking = threading.Thread(target=lambda: parked.append(client.offload(tensor)))
        with stopped_keeper(node):
            asking.start()
            wait_until(lambda: held_bytes(node), what="a slab is being made")
            cut(node, client) if fault is cut else kill(node, client)
            asking.join()
        assert parked[0].tier == "host"
        assert torch.equal(parked[0].fetch(), tensor)
        parked[0].release()  # or a slab is borrowed to bring it back
        if fault is kill:
            node.start_daemon()
        wait_until(lambda: client.stats()["attached"], what="attached again")
        wait_until(
            lambda: grants(node) == (fault is cut), seconds=PROMISE_SECONDS, what="it was made"
        )
        wait_until(
            lambda: held_bytes(node) == 0, seconds=PROMISE_SECONDS, what="the slab is free again"
        )
        assert client.stats()["leases"] == {}
        wait_until(lambda: client.offload(tensor).tier == "peer", what="peers again")
