"""Daemons come and go; what the keeper holds stays, with all that the next one needs to know."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

from tests.keeper.holders import holder, tag_for
from tests.keeper.keepers import Keeper, running_keeper
from tests.nodes import environment, read_line

_DAEMON = """
import sys
from pathlib import Path
from tests.keeper.holders import Holder
from tests.keeper.peers import Peer
peer = Peer(Path(sys.argv[1]))
peer.attach()
print("attached", flush=True)
sys.stdin.read()
"""


def has_fired(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def test_the_next_daemon_gets_tags_bytes_and_proofs() -> None:
    """What one daemon allocated the next one can account for, watch and free."""
    with running_keeper() as keeper, holder() as tenant:
        with keeper.daemon() as first:
            slab = first.allocate(tenant)
            tenant.map(slab.descriptor)
            tenant.write(b"before")
        with keeper.peer() as second:
            attached = second.attach()
            assert attached.holders == 1
            assert attached.keeper_pid == keeper.pid
            held = attached.gpus[0].slabs[0]
            assert held.tag == tag_for(tenant, 1)
            assert tenant.read(6) == b"before"
            pidfd, sentinel = second.proofs[tenant.session_id]
            assert not has_fired(pidfd)
            assert os.path.sameopenfile(sentinel, tenant.sentinel.fileno())
            tenant.kill()
            assert select.select([pidfd], [], [], 10)[0] == [pidfd]
            assert second.free(slab).freed.scrubbed_bytes == held.nbytes


def test_a_handle_never_leaves_before_its_tag_is_written() -> None:
    """Whoever attaches the moment that a handle is out finds whose it is: else nobody could know."""
    with running_keeper() as keeper, holder() as tenant:
        for lease in range(1, 6):
            with keeper.daemon() as first, keeper.peer() as second:
                first.allocate(tenant, lease=lease)
                tags = [slab.tag.lease_id for slab in second.attach().gpus[0].slabs]
                assert tag_for(tenant, lease).lease_id in tags


def test_a_killed_daemon_leaves_everything_to_the_next() -> None:
    """SIGKILL of a daemon's process frees nothing and closes nothing that the keeper needs."""
    with running_keeper() as keeper, holder() as tenant:
        with keeper.daemon() as first:
            first.allocate(tenant)
            killed = attached_process(keeper)
            assert first.has_ended()  # displaced by the process
        killed.kill()
        killed.communicate(timeout=20)
        with keeper.peer() as next_daemon:
            attached = next_daemon.attach()
            assert [slab.tag.lease_id for slab in attached.gpus[0].slabs]
            assert set(next_daemon.proofs) == {tenant.session_id}


def attached_process(keeper: Keeper) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _DAEMON, str(keeper.socket)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=environment(),
    )
    assert process.stdout is not None
    assert read_line(process.stdout, seconds=20) == "attached\n"
    return process


def test_each_session_is_proved_once_however_many_slabs_it_has() -> None:
    """The keeper keeps two descriptors a session, and drops them with its last slab."""
    with running_keeper() as keeper, keeper.daemon() as daemon, holder() as tenant:
        before = keeper.descriptors()
        slabs = [daemon.allocate(tenant, lease=lease) for lease in range(1, 5)]
        keeper.wait_for_descriptors(before + 4 + 2)
        with keeper.peer() as second:
            assert second.attach().holders == 1
            for slab in slabs[:3]:
                daemon.close_descriptor(slab)
                second.free(slab)
            keeper.wait_for_descriptors(before + 1 + 2)
            daemon.close_descriptor(slabs[3])
            second.free(slabs[3])
            keeper.wait_for_descriptors(before)
            assert second.attach().holders == 0


def test_the_newest_daemon_displaces_the_one_before() -> None:
    """Its connection ends, and nothing that it waited for is done behind the new one's back."""
    with running_keeper() as keeper, keeper.daemon() as first, holder() as tenant:
        slab = first.allocate(tenant)
        tenant.map(slab.descriptor)
        first.ask_to_free(slab)
        with keeper.daemon() as second:
            assert first.has_ended()
            tenant.unmap()
            tenant.close_descriptor()
            for _ in range(4):  # the retry would have come long before the last of them
                report = second.next_report()
            assert [entry.tag.lease_id for entry in report.slabs] == [slab.lease_id]
            assert second.free(slab).freed.freed_while_mapped
