"""Ways in which ledgers of lent memory have gone wrong elsewhere, each shown not to happen here."""

from __future__ import annotations

import pytest

from aqua_daemon.core.errors import InsufficientMemory, Restarting
from aqua_daemon.core.events import GpuReported, ProcessEnded
from aqua_daemon.core.instructions import AnswerKeepalive
from aqua_daemon.core.model import LeaseId, LeaseState
from aqua_daemon.core.sizes import MIB
from tests.core.bench import GPU_BYTES, HOME, NEAR, SLAB, Bench, report, use


def test_two_grants_from_one_stale_snapshot() -> None:
    """Two requests after one report never get the same bytes: a promise counts at once."""
    bench = Bench()
    first, second = bench.open("s1", pid=1), bench.open("s2", pid=2)
    bench.report(NEAR, {7: 170 * MIB})  # room for one slab above the reserve
    promised = bench.ask(first)
    with pytest.raises(InsufficientMemory):
        bench.ask(second)
    bench.report(NEAR, {7: 170 * MIB})  # the keeper has not made it yet: the report lacks it
    with pytest.raises(InsufficientMemory):
        bench.ask(second)
    assert bench.state(promised) is LeaseState.ALLOCATING


def test_renew_reviving_an_expired_lease() -> None:
    """A keepalive or re-attach that names a lapsed lease does not bring it back."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.grant(session)
    bench.tick(10.1)
    assert bench.state(lease_id) is LeaseState.REVOKING
    bench.keepalive(session, use(lease_id))
    assert bench.state(lease_id) is LeaseState.REVOKING
    bench.tick(2.1)
    for _ in range(3):
        bench.reattach(session, use(lease_id))
        assert bench.state(lease_id) is LeaseState.QUARANTINED
    bench.acknowledge(session, lease_id)
    bench.keepalive(session, use(lease_id))
    assert bench.the(AnswerKeepalive)[0].ended == (lease_id,)
    bench.freed(lease_id)
    bench.reattach(session, use(lease_id))
    assert bench.the(AnswerKeepalive)[0].ended == (lease_id,)
    assert bench.snapshot.leases == ()


@pytest.mark.parametrize(("total_bytes", "owners"), [(0, {}), (-1, {}), (GPU_BYTES, {7: -1})])
def test_a_failed_probe_counted_as_free_memory(total_bytes: int, owners: dict[int, int]) -> None:
    """The last good figures stay, nothing is granted, until a probe works again."""
    bench = Bench()
    session = bench.open()
    bench.report(NEAR, {7: 100 * MIB})
    before = bench.gpu(NEAR)
    bench.report(NEAR, owners, total_bytes=total_bytes)
    after = bench.gpu(NEAR)
    assert after.used_by_others_bytes == before.used_by_others_bytes == 100 * MIB
    assert after.free_bytes == before.free_bytes
    assert (after.lendable_bytes, after.trouble) == (0, "its last report could not be read")
    with pytest.raises(InsufficientMemory, match="could not be read"):
        bench.ask(session)
    bench.report(NEAR, {7: 100 * MIB})
    assert bench.state(bench.grant(session)) is LeaseState.LEASED


def test_unknown_treated_as_zero() -> None:
    """A GPU that was never heard is not an idle one, nor a failed first probe a free GPU."""
    bench = Bench(attach=False, restart_grace_seconds=1.0)
    session = bench.open()
    assert bench.gpu(NEAR).lendable_bytes == 0
    with pytest.raises(Restarting):
        bench.ask(session)
    bench.tick(1.1)
    with pytest.raises(InsufficientMemory, match="its keeper has not been heard"):
        bench.ask(session)
    bench.attach(HOME, NEAR, total_bytes=0)
    assert bench.gpu(NEAR).lendable_bytes == 0
    with pytest.raises(InsufficientMemory, match="could not be read"):
        bench.ask(session)


def test_unknown_use_is_not_no_use() -> None:
    """A slab that its client has said nothing of is not taken for an empty one."""
    bench = Bench()
    session = bench.open()
    silent, empty = bench.grant(session), bench.grant(session)
    bench.keepalive(session, use(empty, used_bytes=0))
    bench.report(NEAR, {11: 1})
    bench.reclaim(session, SLAB)
    assert bench.state(empty) is LeaseState.REVOKING
    assert bench.state(silent) is LeaseState.LEASED


def test_a_heartbeat_without_a_lease_counted() -> None:
    """Naming leases that one does not hold counts for nothing, and keeps nobody else's alive."""
    bench = Bench()
    idle, holder = bench.open("s1", pid=1), bench.open("s2", pid=2)
    lease_id = bench.grant(holder)
    before = bench.snapshot
    bench.keepalive(idle, use(lease_id, used_bytes=SLAB), use(LeaseId("never")))
    assert bench.the(AnswerKeepalive)[0].ended == (lease_id, "never")
    assert bench.snapshot.gpus == before.gpus
    assert bench.snapshot.tenants == before.tenants
    assert bench.snapshot.leases == before.leases
    assert bench.snapshot.named_at == before.named_at
    assert bench.snapshot.uses == before.uses
    for _ in range(4):
        bench.tick(3.0)
        bench.keepalive(idle, use(lease_id))
    assert bench.state(lease_id) is LeaseState.REVOKING


def test_pinned_bytes_reported_as_free() -> None:
    """What a stopped or inherited holder still maps is in no free figure, however long it takes."""
    bench = Bench()
    stopped, forked = bench.open("s1", pid=1), bench.open("s2", pid=2)
    pinned = [bench.grant(stopped), bench.grant(forked)]
    bench.handle(ProcessEnded(session_id=forked))
    for _ in range(4):
        bench.tick(30.0)
        gpu = bench.gpu(NEAR)
        assert gpu.quarantined_bytes == 2 * SLAB
        assert gpu.free_bytes == GPU_BYTES - 2 * SLAB
        assert gpu.lendable_bytes <= gpu.free_bytes - gpu.reserve_bytes
    slabs = dict.fromkeys(pinned, SLAB)
    bench.handle(GpuReported(report=report(NEAR, slabs)))
    assert bench.gpu(NEAR).free_bytes == GPU_BYTES - 2 * SLAB
