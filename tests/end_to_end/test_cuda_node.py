"""A whole node of fake CUDA GPUs: the daemon, a keeper for each GPU, borrowers, aquactl."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aqua_client.records import Grant, SafetyClass
from tests.cuda.keepers import HOME, KINDS, MIB, SLAB_BYTES, CudaTenant, tenant
from tests.end_to_end.borrower import CALL_SECONDS, Borrower, borrowing
from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.topologies import one_with_mig
from tests.keeper.peers import Slab
from tests.nodes import Node, running_node, short_directory, wait_until

GIB = 2**30
CONTEXT_BYTES = 500 * MIB
FIRST_SECONDS = 20.0  # eight keepers start on two cores


@pytest.fixture
def machine(tmp_path: Path) -> FakeCudaNode:
    return fake_cuda_node(tmp_path, gpus=8, memory=4 * GIB)


@contextmanager
def served(
    machine: FakeCudaNode, handles: str = "legacy", *, quota_bytes: int = 2**40
) -> Iterator[Node]:
    """A daemon that lends the machine's GPUs."""
    with running_node(
        gpus=0,
        variables=machine.environment(),
        handles=handles,
        tenant_quota_bytes=quota_bytes,
    ) as node:
        yield node


def gpus_of(node: Node, machine: FakeCudaNode) -> dict[str, dict[str, object]]:
    """What `aquactl status` shows of each GPU."""
    words = [sys.executable, "-m", "aqua_daemon.ctl", "status", "--json", "--socket", node.socket]
    run = subprocess.run(
        words, env=machine.environment(), capture_output=True, timeout=30, check=True
    )
    return {gpu["gpu"]: gpu for gpu in json.loads(run.stdout)["gpus"]}


def await_contexts(machine: FakeCudaNode, count: int) -> None:
    wait_until(
        lambda: len(machine.contexts()) == count,
        seconds=FIRST_SECONDS,
        what=f"{count} contexts, not {machine.contexts()}",
    )


def opened(user: CudaTenant, grant: Grant) -> Slab:
    """The grant, mapped in another process than the session's."""
    slab = Slab(
        gpu=grant.lender_gpu,
        lease_id=grant.lease_id,
        nbytes=grant.nbytes,
        descriptor=-1 if grant.descriptor is None else grant.descriptor,
        canary=grant.canary,
        cuda_ipc=grant.cuda_ipc,
    )
    user.open(slab)
    if grant.descriptor is not None:
        os.close(grant.descriptor)
    return slab


def acquire(borrower: Borrower) -> Grant:
    return borrower.session.acquire(SLAB_BYTES, SafetyClass.CACHE, seconds=CALL_SECONDS)


def release(borrower: Borrower, grant: Grant) -> None:
    assert borrower.session.release([grant.lease_id], borrower.host_room()) == {grant.lease_id}


def await_loss(borrower: Borrower) -> None:
    wait_until(
        lambda: any(line.startswith("lost 1 ") for line in borrower.told),
        what="the holder is told of its loss",
    )


def test_each_gpu_is_lent_by_a_keeper_of_its_own(machine: FakeCudaNode) -> None:
    """Eight keepers with a context each, on their own GPUs; nobody else has one."""
    with served(machine) as node:
        await_contexts(machine, 8)
        assert {context.uuid for context in machine.contexts()} == {*machine.uuids}
        assert {context.pid for context in machine.contexts()} == {*node.keeper_pids()}
        wait_until(
            lambda: all(
                gpu["used_by_others_bytes"] == CONTEXT_BYTES
                for gpu in gpus_of(node, machine).values()
            ),
            what="each context is counted",
        )
        gpus = gpus_of(node, machine)
        assert list(gpus) == machine.uuids
        for gpu in gpus.values():
            assert gpu["total_bytes"] == 4 * GIB
            assert gpu["model"] == "NVIDIA H100 80GB HBM3"
            assert (gpu["trouble"], gpu["warnings"]) == ("", [])
        assert machine.contexts_made == 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_grant_is_opened_on_the_borrowers_own_gpu(machine: FakeCudaNode, kind: str) -> None:
    """With its canary; given back, every byte of the lender is there again."""
    with (
        served(machine, handles=kind) as node,
        borrowing(node, home_gpu=machine.uuids[HOME]) as borrower,
    ):
        await_contexts(machine, 8)
        grant = acquire(borrower)
        assert grant.lender_gpu != machine.uuids[HOME]
        assert grant.keeper_pid in node.keeper_pids()
        assert len(grant.cuda_ipc) == (64 if kind == "legacy" else 0)
        with tenant(machine) as user:
            slab = opened(user, grant)
            assert user.read(128) == grant.canary + bytes(64)
            homes = [context.uuid for context in machine.contexts() if context.pid == user.pid]
            assert homes == [machine.uuids[HOME]]
            user.fill(SLAB_BYTES, 0xAB)
            user.close_slab(slab)
        release(borrower, grant)
        wait_until(lambda: not machine.allocations(), what="the slab is freed")
        assert machine.used_bytes(grant.lender_gpu) == CONTEXT_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_ex_holder_keeps_mapped_is_not_lent_again(machine: FakeCudaNode, kind: str) -> None:
    """Its bytes are the others' in status, with a warning, until it lets go."""
    with (
        served(machine, handles=kind) as node,
        borrowing(node, home_gpu=machine.uuids[HOME]) as borrower,
        tenant(machine) as user,
    ):
        await_contexts(machine, 9)  # the tenant's own among them
        grant = acquire(borrower)
        slab = opened(user, grant)
        release(borrower, grant)

        def lender() -> dict[str, object]:
            return gpus_of(node, machine)[grant.lender_gpu]

        others_bytes = CONTEXT_BYTES + SLAB_BYTES
        wait_until(lambda: lender()["used_by_others_bytes"] == others_bytes, what="counted")
        wait_until(lambda: "(unreturned)" in str(lender()["warnings"]), what="told")
        assert lender()["free_bytes"] == 4 * GIB - others_bytes
        user.close_slab(slab)
        wait_until(lambda: lender()["used_by_others_bytes"] == CONTEXT_BYTES, what="it heals")
        wait_until(lambda: lender()["warnings"] == [], what="and nobody is warned any more")


def test_a_gpu_that_may_not_be_lent_says_why_and_the_others_lend(tmp_path: Path) -> None:
    """MIG on one of eight: trouble in status, no context there, grants from elsewhere."""
    machine = fake_cuda_node(tmp_path, topology=one_with_mig())
    with served(machine) as node, borrowing(node, home_gpu=machine.uuids[HOME]) as borrower:
        await_contexts(machine, 7)
        gpu = gpus_of(node, machine)[machine.uuids[2]]
        assert "MIG is enabled" in str(gpu["trouble"])
        assert gpu["lendable_bytes"] == 0
        grant = acquire(borrower)
        assert grant.lender_gpu not in {machine.uuids[2], machine.uuids[HOME]}
        release(borrower, grant)
        assert machine.uuids[2] not in {context.uuid for context in machine.contexts()}


def test_a_dead_keepers_leases_are_lost_and_its_gpu_lends_again(machine: FakeCudaNode) -> None:
    """The holder is told; the daemon starts another keeper; the rest of the node goes on."""
    with served(machine) as node, borrowing(node, home_gpu=machine.uuids[HOME]) as borrower:
        await_contexts(machine, 8)
        grant = acquire(borrower)
        os.kill(grant.keeper_pid, signal.SIGKILL)
        await_loss(borrower)
        wait_until(
            lambda: gpus_of(node, machine)[grant.lender_gpu]["trouble"] == "",
            seconds=FIRST_SECONDS,
            what="the GPU is lent again",
        )
        await_contexts(machine, 8)
        assert machine.contexts_made == 9


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_daemon_adopts_what_the_keepers_hold(machine: FakeCudaNode, kind: str) -> None:
    """Over kill -9 the holder reads on, and what it gives back is freed."""
    with (
        served(machine, handles=kind) as node,
        borrowing(node, home_gpu=machine.uuids[HOME]) as borrower,
        tenant(machine) as user,
    ):
        await_contexts(machine, 9)  # the tenant's own among them
        grant = acquire(borrower)
        slab = opened(user, grant)
        user.fill(4096, 0xCD)
        node.restart_daemon(graceful=False)
        assert user.read(4096) == b"\xcd" * 4096
        user.close_slab(slab)
        wait_until(lambda: borrower.session.attached, what="the holder is back")
        release(borrower, grant)
        wait_until(lambda: not machine.allocations(), what="the slab is freed")
        assert machine.contexts_made == 9  # eight keepers and the tenant: none was started anew


def test_a_gpu_that_falls_off_the_bus_is_told_of(machine: FakeCudaNode) -> None:
    """Its leases are lost, status says why it lends nothing, and the others do not notice."""
    with served(machine) as node, borrowing(node, home_gpu=machine.uuids[HOME]) as borrower:
        await_contexts(machine, 8)
        grant = acquire(borrower)
        machine.remove_gpu(grant.lender_gpu)
        await_loss(borrower)
        wait_until(
            lambda: "GPU is lost" in str(gpus_of(node, machine)[grant.lender_gpu]["trouble"]),
            seconds=FIRST_SECONDS,
            what="NVML's word in status",
        )
        other = acquire(borrower)
        assert other.lender_gpu != grant.lender_gpu
        release(borrower, other)


def test_without_a_gpu_the_daemon_says_what_to_do(tmp_path: Path) -> None:
    """No driver here: status 1, and a message that names both ways on."""
    environment = fake_cuda_node(tmp_path, gpus=1).environment()
    del environment["FAKE_CUDA_NODE"]
    with short_directory() as directory:
        words = [sys.executable, "-m", "aqua_daemon", "--socket", str(directory / "aqua.sock")]
        done = subprocess.run(
            words, env=environment, capture_output=True, timeout=30, check=False, text=True
        )
    assert done.returncode == 1
    assert "NVML Shared Library Not Found" in done.stderr
    assert "--gpu" in done.stderr
    assert "--shm-gpus" in done.stderr
