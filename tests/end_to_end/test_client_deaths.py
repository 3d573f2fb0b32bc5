"""Clients that are killed, stopped, or leave something behind: whose bytes come back when.

Processes are killed for real. What is promised within a second is waited for ten times as long.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest
import torch

import aqua_client
from aqua_client.mapping import Mapping
from aqua_client.records import HostRoom, SafetyClass
from tests.end_to_end.borrower import Borrower
from tests.end_to_end.programs import PARKING, running_program
from tests.nodes import MIB, Node, running_node, wait_until

PROMISE_SECONDS = 10.0  # ten times what is promised
PATTERN = 0xA5

FORKING = (
    PARKING
    + """
child = os.fork()
if child == 0:
    signal.pause()
say(child=child, **state())
signal.pause()
"""
)


LENDING = """
with contextlib.suppress(aqua_client.NotAnOwner), aqua_client.producer("SHM-1") as owner:
    owner.lend(0)
"""
# As against a daemon of the release before, and for a call of many leases.
USING_GRPC = """
from aqua_client.channel import new_channel
channel = new_channel("unix:" + os.environ["AQUA_SOCKET"])
"""


CONNECTING_ANEW = """
child = os.fork()
if child == 0:
    try:
        handles[0].fetch()
    except aqua_client.ForkedChild:
        with aqua_client.connect() as anew:
            again = anew.offload(noise(99))
            done = again.reason == REASON and torch.equal(again.fetch(), noise(99))
        os._exit(0 if done else 1)
    os._exit(2)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
say(status=status, intact=intact(), has_grpc="grpc" in sys.modules, **state())
"""


def pool_bytes(node: Node, *states: str) -> int:
    """Of all GPUs together."""
    samples = node.scrape()
    pools = {name: value for name, value in samples.items() if name.startswith("aqua_pool_bytes")}
    wanted = [f'state="{state}"' for state in states] or ["state="]
    return int(sum(value for name, value in pools.items() if any(one in name for one in wanted)))


def held_bytes(node: Node) -> int:
    """What borrowers have of them, in whatever state."""
    return pool_bytes(node) - pool_bytes(node, "free", "used_by_others")


def test_a_client_that_is_killed_leaves_nothing() -> None:
    """All its slabs are free again at once."""
    with running_node(gpus=3, gpu_bytes=64 * MIB) as node, running_program(node) as client:
        assert client.first["tiers"] == ["peer"]
        assert held_bytes(node) >= 6 * MIB
        client.process.send_signal(signal.SIGKILL)
        wait_until(lambda: held_bytes(node) == 0, seconds=PROMISE_SECONDS, what="all is free")
        assert pool_bytes(node, "free") == 3 * 64 * MIB


def test_the_slabs_of_a_killed_client_wait_for_its_forked_child() -> None:
    """The child might still reach them: quarantined while it lives, free when it has ended."""
    with (
        running_node(gpus=3, gpu_bytes=64 * MIB) as node,
        running_program(node, source=FORKING) as client,
    ):
        child = client.first["child"]
        assert isinstance(child, int)
        lent = held_bytes(node)
        client.process.send_signal(signal.SIGKILL)
        client.process.wait()
        try:
            wait_until(lambda: pool_bytes(node, "quarantined") == lent, what="quarantined")
            assert pool_bytes(node, "free") == 3 * 64 * MIB - lent
        finally:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        wait_until(lambda: held_bytes(node) == 0, seconds=PROMISE_SECONDS, what="all is free")


@pytest.mark.parametrize(
    ("before", "reason"),
    [("", ""), (LENDING, ""), (USING_GRPC, "forked")],
    ids=["a borrower", "a lender", "gRPC"],
)
def test_a_forked_child_may_connect_anew(before: str, reason: str) -> None:
    """It borrows, or works on host memory where gRPC is lost to it; the parent's slabs stay."""
    source = f"{PARKING}\nimport contextlib\n{before}\nREASON = {reason!r}\n{CONNECTING_ANEW}"
    with (
        running_node(gpus=3, gpu_bytes=64 * MIB) as node,
        running_program(node, source=source) as client,
    ):
        assert client.first["status"] == 0
        assert client.first["intact"] is True
        assert client.first["has_grpc"] is bool(reason), "who needs none does not even load it"
        assert client.first["tiers"] == ["peer"]
        client.process.wait(PROMISE_SECONDS)
        assert client.process.returncode == 0
        wait_until(lambda: held_bytes(node) == 0, seconds=PROMISE_SECONDS, what="all is free")


def test_a_daemon_that_hangs_neither_stops_a_client_nor_its_end() -> None:
    """It fetches, offloads to the host at worst, and ends by itself; its slabs are free later."""
    with running_node(gpus=3, gpu_bytes=64 * MIB) as node, running_program(node) as client:
        node.stop_daemon()
        assert client.ask()["intact"] is True
        assert client.process.stdin is not None
        client.process.stdin.close()  # its end of lines: it ends
        client.process.wait(PROMISE_SECONDS)
        assert client.process.returncode == 0
        node.continue_daemon()
        wait_until(lambda: held_bytes(node) == 0, seconds=PROMISE_SECONDS, what="all is free")


@pytest.mark.limit(90)
def test_a_client_that_was_stopped_past_the_deadline_heals_when_it_goes_on() -> None:
    """Its slabs are quarantined meanwhile, never free; afterwards every byte is where it was."""
    with running_node(gpus=3, gpu_bytes=64 * MIB) as node, running_program(node) as client:
        gpus = client.first["gpus"]
        assert isinstance(gpus, list)
        lent = held_bytes(node)
        client.process.send_signal(signal.SIGSTOP)
        owners = [node.start_load(gpu, 60 * MIB) for gpu in gpus]
        wait_until(lambda: pool_bytes(node, "quarantined") == lent, seconds=20, what="quarantined")
        client.process.send_signal(signal.SIGCONT)
        for owner in owners:
            node.await_loaded(owner)  # they have waited for what the client held
        wait_until(lambda: pool_bytes(node, "quarantined") == 0, seconds=20, what="healed")
        answer = client.ask()
        assert answer["intact"] is True
        assert answer["tiers"] in (["peer"], ["host"], ["mixed"], ["host", "peer"])
        healed = answer["gpus"]
        assert isinstance(healed, list)
        assert not set(healed) & set(gpus)
        wait_until(lambda: client.ask()["intact"] is True, what="intact still")


def test_an_ex_tenant_that_kept_its_descriptor_sees_nothing_of_the_next() -> None:
    """A lease is one allocation: what is lent next is other memory."""
    with running_node(gpus=2, gpu_bytes=16 * MIB) as node:
        kept = _released_but_kept(node, 4 * MIB)
        mapped = Mapping(kept, 4 * MIB)
        pattern = torch.full((4 * MIB,), PATTERN, dtype=torch.uint8)
        with aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client:
            handles = [client.offload(pattern) for _ in range(2)]
            assert "peer" in {handle.tier for handle in handles}
            assert torch.equal(handles[0].fetch(), pattern)
            again = Mapping(kept, 4 * MIB)
            for view in (mapped, again):
                assert not (view.array == PATTERN).all()
                assert (view.array != 0).sum() <= 256  # noise of its own canary at most
            again.close()
        mapped.close()
        os.close(kept)


def _released_but_kept(node: Node, nbytes: int) -> int:
    """A descriptor of a slab that has been given back, kept all the same."""
    borrower = Borrower(node, home_gpu="SHM-0")
    borrower.session.start()
    wait_until(lambda: borrower.session.attached, what="attached")
    grant = borrower.session.acquire(nbytes, SafetyClass.CACHE, seconds=10.0)
    assert grant.descriptor is not None
    room = HostRoom(revision=1, nbytes=0)
    assert borrower.session.release([grant.lease_id], room) == {grant.lease_id}
    borrower.close()
    return grant.descriptor
