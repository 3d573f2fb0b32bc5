"""The daemon's links over real keepers that are killed, stopped and started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

from aqua_daemon.adapters import keeper_connection, keeper_link
from aqua_daemon.adapters.keeper_address import KeeperAddress
from aqua_daemon.adapters.keeper_processes import KeeperProcess, shm_keeper_command
from aqua_daemon.core.events import (
    KeeperAttached,
    KeeperDetached,
    KeeperEnded,
    SlabAllocationFailed,
    SlabFreed,
)
from aqua_daemon.core.instructions import AllocateSlab
from tests.keeper.holders import Holder, holder
from tests.keeper.keepers import GPU_BYTES, Keeper, running_keeper
from tests.keeper.links import SECONDS, SHM_0, SHM_1, Linked, granted, linked, order_for, outside
from tests.nodes import REPOSITORY, short_directory


def spawned(directory: Path) -> KeeperAddress:
    """A keeper that the links start."""
    path = directory / "spawned.sock"
    command = list(shm_keeper_command(gpus=2, gpu_bytes=GPU_BYTES, socket_path=path))
    assert command[:4] == [sys.executable, "-m", "aqua_daemon", "keeper"]
    setup = f"import sys; sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / 'protos')!r}];"
    program = f"{setup} from aqua_daemon.cli import main; sys.exit(main(sys.argv[1:]))"
    process = KeeperProcess(
        [sys.executable, "-c", program, *command[3:]], log_path=directory / "spawned.log"
    )
    return KeeperAddress(socket_path=path, gpus=(SHM_0, SHM_1), process=process)


def test_a_killed_keeper_has_ended_and_took_its_slabs() -> None:
    """KeeperEnded, never KeeperDetached; its handles and frees are dropped; the next one attaches."""

    async def story(keeper: Keeper, tenant: Holder) -> None:
        async with linked(outside(keeper.socket)) as node:
            await node.event(KeeperAttached)
            order = await granted(node, tenant)
            after = len(node.events)
            keeper.end()
            assert (await node.event(KeeperEnded, after=after)).gpus == (SHM_0, SHM_1)
            assert node.links.handle(order.tag.lease_id) is None
            node.links.allocate(order)
            await node.event(SlabAllocationFailed, after=after)
            follower = Keeper(keeper.socket.parent)
            try:
                assert (await node.event(KeeperAttached, after=after)).slabs == ()
                kinds = {type(event) for event in node.events}
                assert KeeperDetached not in kinds
                assert SlabFreed not in kinds
            finally:
                follower.end()

    with running_keeper() as keeper, holder() as tenant:
        asyncio.run(story(keeper, tenant))


def test_a_spawned_keeper_is_adopted_and_replaced() -> None:
    """It outlives the links that started it, the next ones adopt it, and start another if it dies."""

    async def story(directory: Path, tenant: Holder, pids: list[int]) -> None:
        async with linked(spawned(directory)) as first:
            await first.event(KeeperAttached)
            order = await granted(first, tenant)
            pids.append(keeper_pid(first, order))
            assert os.getsid(pids[0]) == pids[0]
        async with linked(spawned(directory)) as second:
            attached = await second.event(KeeperAttached)
            assert attached.slabs == (order.tag,)
            os.kill(pids[0], signal.SIGKILL)
            await second.event(KeeperEnded)
            after = len(second.events)
            assert (await second.event(KeeperAttached, after=after)).slabs == ()
            pids.append(keeper_pid(second, await granted(second, tenant, lease=2)))
            assert pids[1] != pids[0]

    pids: list[int] = []
    with short_directory() as directory, holder() as tenant:
        try:
            asyncio.run(story(directory, tenant, pids))
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)


def keeper_pid(node: Linked, order: AllocateSlab) -> int:
    handle = node.links.handle(order.tag.lease_id)
    assert handle is not None
    return handle.keeper_pid


def test_a_stopped_keeper_is_detached_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs is not waited for and not given up: continued, it has what it had."""
    monkeypatch.setattr(keeper_connection, "SILENCE_SECONDS", 3.0)
    monkeypatch.setattr(keeper_link, "ATTACH_SECONDS", 0.2)

    async def story(keeper: Keeper, tenant: Holder) -> None:
        async with linked(outside(keeper.socket)) as node:
            await node.event(KeeperAttached)
            order = await granted(node, tenant)
            keeper.signal(signal.SIGSTOP)
            node.links.allocate(order_for(order.tag.session_id, lease=2))
            assert "has said nothing" in (await node.event(SlabAllocationFailed)).message
            await node.event(KeeperDetached)
            after = len(node.events)
            monkeypatch.setattr(keeper_link, "ATTACH_SECONDS", SECONDS)
            keeper.signal(signal.SIGCONT)
            attached = await node.event(KeeperAttached, after=after)
            assert order.tag in attached.slabs
            assert KeeperEnded not in {type(event) for event in node.events}

    with running_keeper() as keeper, holder() as tenant:
        asyncio.run(story(keeper, tenant))
