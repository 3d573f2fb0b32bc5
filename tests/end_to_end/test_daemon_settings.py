"""Each flag of the daemon reaches what it is about: shown at a running node."""

from __future__ import annotations

import grp
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aqua_client.errors import Refused
from aqua_client.records import SafetyClass
from tests.end_to_end.borrower import borrowing
from tests.nodes import MIB, environment, read_line, running_node, wait_until


def test_the_term_is_what_clients_are_told_and_what_holds() -> None:
    """A borrower under a short term keeps its lease by keepalives, and loses it when it stops."""
    with (
        running_node(gpus=2, term_seconds=0.6) as node,
        borrowing(node) as borrower,
    ):
        assert borrower.session.term_seconds == 0.6
        borrower.borrow(4 * MIB)
        forgotten = borrower.slabs.pop()
        wait_until(lambda: borrower.revokes, what="what is not named for a term is taken back")
        assert borrower.revokes[0].reason == "unclaimed"
        borrower.slabs.append(forgotten)
        borrower.acknowledge(forgotten)


def test_a_process_may_borrow_from_its_own_gpu_where_told() -> None:
    """With one GPU nothing can be borrowed for it, unless the daemon lends to a GPU its own."""
    with running_node(gpus=1) as node, borrowing(node) as borrower:
        with pytest.raises(Refused) as caught:
            borrower.borrow(4 * MIB)
        assert caught.value.reason == "no_room"
    with running_node(gpus=1, lend_to_own_gpu=True) as node, borrowing(node) as borrower:
        assert borrower.borrow(4 * MIB).grant.lender_gpu == "SHM-0"


@pytest.mark.parametrize("pool", ["6MiB", "100MiB"])
def test_host_room_ends_where_the_settings_say(pool: str) -> None:
    """A store slab that the pool or the tenant's share has no room for is refused, a cache is not."""
    share = "100MiB" if pool == "6MiB" else "6MiB"
    with (
        running_node(gpus=2, host_pool_bytes=pool, tenant_host_bytes=share) as node,
        borrowing(node) as borrower,
    ):
        borrower.borrow(4 * MIB, SafetyClass.STORE)
        with pytest.raises(Refused) as caught:
            borrower.borrow(4 * MIB, SafetyClass.STORE)
        assert caught.value.reason == "no_host_room"
        borrower.borrow(4 * MIB, SafetyClass.CACHE)


@pytest.mark.usefixtures("root")
def test_the_sockets_belong_to_the_group() -> None:
    """Members of `--group` may connect to the API and to presence, nobody else's group may."""
    group = next(entry for entry in grp.getgrall() if entry.gr_gid != os.getgid())
    with running_node(gpus=1, group=group.gr_name) as node:
        for path in (node.socket, f"{node.socket}.presence"):
            assert Path(path).stat().st_gid == group.gr_gid


def test_the_socket_is_found_in_the_environment() -> None:
    """AQUA_SOCKET serves a daemon, an owner and a client that were told nothing else."""
    with running_node(gpus=2) as node:
        owner = subprocess.Popen(
            [sys.executable, "-m", "aqua_daemon", "load", "--gpu", "SHM-1", "--bytes", "4MiB"],
            env=environment(AQUA_SOCKET=node.socket),
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert owner.stdout is not None
            assert "loaded" in read_line(owner.stdout, seconds=20)
        finally:
            owner.kill()
            owner.communicate(timeout=10)
        second = subprocess.run(
            [sys.executable, "-m", "aqua_daemon", "--shm-gpus", "2", "--metrics", "127.0.0.1:0"],
            env=environment(AQUA_SOCKET=node.socket),
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert second.returncode == 1
        assert f"process {node.pid} holds {node.socket}.lock" in second.stderr
