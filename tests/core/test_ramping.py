"""A GPU that begins to lend is filled step by step; one that lends already is not held back."""

from __future__ import annotations

from aqua_daemon.core.events import KeeperDetached, OfferMade, QuiesceRequested
from aqua_daemon.core.model import LendingPolicy
from aqua_daemon.core.sizes import MIB
from tests.core.bench import CACHE, GPU_BYTES, HOME, NEAR, SLAB, Bench

RAMP = 5.0


def offered(bench: Bench, nbytes: int) -> None:
    """The owner of NEAR, pid 50, offers so much."""
    owner = bench.open("owner", pid=50, home=NEAR)
    bench.report(NEAR, {50: MIB})
    bench.handle(
        OfferMade(session_id=owner, request_id=bench.request_id(), gpu=NEAR, nbytes=nbytes)
    )


def lendable(bench: Bench) -> int:
    return bench.gpu(NEAR).lendable_bytes


def test_a_gpu_that_begins_to_lend_lends_one_slab_first_and_all_in_the_end() -> None:
    """What may be lent grows with time, never past what there is, and then the ramp is over."""
    bench = Bench(lending=LendingPolicy.OFFERED, ramp_seconds=RAMP)
    bench.tick(1.0)
    offered(bench, GPU_BYTES)
    assert lendable(bench) == SLAB
    seen = []
    for _ in range(6):
        bench.tick(1.0)
        seen.append(lendable(bench))
    assert seen == sorted(seen)
    assert SLAB < seen[0] < seen[2] < seen[-1]
    assert seen[-1] == bench.gpu(NEAR).free_bytes - int(1.5 * bench.gpu(NEAR).reserve_bytes) - 1


def test_what_is_granted_meanwhile_counts() -> None:
    """The step is of what is lent there in all, not of each request."""
    bench = Bench(lending=LendingPolicy.OFFERED, ramp_seconds=RAMP)
    bench.tick()
    offered(bench, GPU_BYTES)
    bench.grant(bench.open())
    assert lendable(bench) == 0
    bench.tick(1.0)
    assert 0 < lendable(bench) < 2 * SLAB


def test_a_gpu_that_lent_before_this_daemon_has_no_ramp() -> None:
    """A restart is no beginning."""
    bench = Bench(ramp_seconds=RAMP, attach=False)
    bench.tick(1.0)
    bench.attach(HOME, NEAR)
    bench.tick()
    assert lendable(bench) > 5 * SLAB


def test_a_gpu_whose_keeper_was_away_begins_anew() -> None:
    """Nobody knows what its owner has in mind: it is filled as a new one."""
    bench = Bench(ramp_seconds=RAMP)
    bench.tick()
    bench.handle(KeeperDetached(gpus=(NEAR,)))
    bench.tick(1.0)
    bench.attach(NEAR)
    assert lendable(bench) == SLAB
    bench.tick(RAMP + 0.2)
    assert lendable(bench) > 5 * SLAB


def test_a_ramp_begins_above_what_is_lent_already() -> None:
    """After a quiet time one slab more than is lent may be lent, and then never less than that."""
    bench = Bench(ramp_seconds=RAMP)
    session = bench.open()
    for _ in range(3):
        bench.grant(session, safety_class=CACHE)
    admin = bench.open("admin", home=None, pid=1, is_admin=True)
    bench.handle(
        QuiesceRequested(session_id=admin, request_id=bench.request_id(), gpu=NEAR, seconds=1.0)
    )
    bench.tick(1.0)
    assert lendable(bench) == SLAB
    bench.tick(0.5)
    assert lendable(bench) >= SLAB


def test_a_ramp_ends_however_seldom_it_is_looked_at() -> None:
    """One look early, one long afterwards."""
    bench = Bench(lending=LendingPolicy.OFFERED, ramp_seconds=RAMP)
    bench.tick()
    offered(bench, GPU_BYTES)
    bench.now += 0.5
    bench.tick()
    bench.now += 20.0
    bench.tick()
    assert lendable(bench) > 5 * SLAB
