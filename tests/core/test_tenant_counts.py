"""How many leases and sessions a tenant may have: by default, by quota, over a restart."""

from __future__ import annotations

import pytest

from aqua_daemon.core import sessions
from aqua_daemon.core.broker import Broker
from aqua_daemon.core.errors import InvalidRequest, QuotaExceeded
from aqua_daemon.core.events import (
    UNCHANGED,
    ProcessEnded,
    QuotaSet,
    SentinelEnded,
    SessionOpened,
    Unchanged,
)
from aqua_daemon.core.instructions import AnswerQuota, SendRevoke
from aqua_daemon.core.limits import Quota, QuotaOutcome
from aqua_daemon.core.model import SessionId, TenantName
from aqua_daemon.core.node_snapshot import QuotaSnapshot
from aqua_daemon.core.sizes import MIB, SPARE_ADMIN_SESSIONS
from tests.core.bench import ALICE, BOB, CACHE, SLAB, Bench, process

SMALL = 4 * MIB
BLUE = TenantName("alice+blue")
ROOT = TenantName("root")


def admin(bench: Bench, name: str = "admin", *, tenant: TenantName = ROOT) -> SessionId:
    opened = SessionOpened(
        session_id=SessionId(name),
        tenant=tenant,
        process=process(1),
        home_gpu=None,
        is_admin=True,
    )
    bench.handle(opened)
    return opened.session_id


def set_quota(
    bench: Bench,
    *,
    nbytes: int | Unchanged | None = UNCHANGED,
    leases: int | Unchanged | None = UNCHANGED,
    sessions: int | Unchanged | None = UNCHANGED,
    tenant: TenantName = ALICE,
    revision: int | None = None,
) -> AnswerQuota:
    bench.handle(
        QuotaSet(
            session_id=SessionId("admin"),
            request_id=bench.request_id(),
            tenant=tenant,
            nbytes=nbytes,
            leases=leases,
            sessions=sessions,
            revision=revision,
        )
    )
    [answer] = bench.the(AnswerQuota)
    return answer


def quota(bench: Bench, tenant: TenantName = ALICE) -> QuotaSnapshot:
    return next(one for one in bench.snapshot.quotas if one.tenant == tenant)


def test_leases_are_counted_whatever_their_size() -> None:
    """The one over the limit is refused by name and number; one that is freed makes room."""
    bench = Bench(tenant_quota_leases=2)
    session, other = bench.open(), bench.open("s2", tenant=BOB, pid=12)
    first = bench.grant(session, nbytes=SMALL, safety_class=CACHE)
    bench.ask(session, nbytes=SMALL, safety_class=CACHE)  # promised is held
    with pytest.raises(QuotaExceeded, match="alice holds 2 of its 2 leases"):
        bench.ask(session, nbytes=SMALL, safety_class=CACHE)
    bench.grant(other, nbytes=SMALL, safety_class=CACHE)
    bench.release(session, first)
    with pytest.raises(QuotaExceeded):
        bench.ask(session, nbytes=SMALL, safety_class=CACHE)  # not yet with the driver
    bench.freed(first)
    bench.ask(session, nbytes=SMALL, safety_class=CACHE)
    assert quota(bench).held_leases == 2


def test_sessions_are_counted_until_nothing_is_left_of_them() -> None:
    """A dead process whose child may map its slabs still has a session."""
    bench = Bench(tenant_quota_sessions=1)
    session = bench.open()
    bench.grant(session, nbytes=SMALL)
    with pytest.raises(QuotaExceeded, match="alice has 1 of its 1 sessions"):
        bench.open("s2", pid=12)
    bench.open("s3", tenant=BOB, pid=13)
    bench.handle(ProcessEnded(session_id=session))
    with pytest.raises(QuotaExceeded):
        bench.open("s4", pid=12)
    bench.handle(SentinelEnded(session_id=session))
    for lease in bench.snapshot.leases:
        bench.freed(lease.lease_id)
    bench.open("s5", pid=12)
    assert quota(bench).held_sessions == 1


def test_sub_tenants_share_the_counts_of_their_tenant() -> None:
    """Another name buys nothing; a sub-tenant may have fewer of its own."""
    bench = Bench(tenant_quota_leases=3, tenant_quota_sessions=2)
    admin(bench)
    plain, blue = bench.open(), bench.open("blue", tenant=BLUE, pid=12)
    with pytest.raises(QuotaExceeded, match="alice has 2 of its 2 sessions"):
        bench.open("red", tenant=TenantName("alice+red"), pid=13)
    set_quota(bench, tenant=BLUE, leases=1, sessions=1)
    bench.grant(blue, nbytes=SMALL, safety_class=CACHE)
    with pytest.raises(QuotaExceeded, match=r"alice\+blue holds 1 of its 1 leases"):
        bench.ask(blue, nbytes=SMALL, safety_class=CACHE)
    for _ in range(2):
        bench.grant(plain, nbytes=SMALL, safety_class=CACHE)
    set_quota(bench, tenant=BLUE, leases=None)
    with pytest.raises(QuotaExceeded, match="alice holds 3 of its 3 leases"):
        bench.ask(blue, nbytes=SMALL, safety_class=CACHE)
    shown = quota(bench, BLUE)
    assert (shown.leases, shown.leases_are_default, shown.held_leases) == (3, True, 1)
    assert (shown.sessions, shown.sessions_are_default, shown.held_sessions) == (1, False, 1)


def test_a_setting_leaves_what_it_does_not_name() -> None:
    """Bytes, leases and sessions are set one by one or together; each setting is a revision."""
    bench = Bench()
    admin(bench)
    set_quota(bench, nbytes=SLAB)
    set_quota(bench, leases=5)
    assert set_quota(bench, sessions=7, nbytes=None).quota == Quota(
        revision=3, nbytes=None, leases=5, sessions=7
    )
    assert set_quota(bench, leases=5, revision=3).outcome is QuotaOutcome.APPLIED
    assert set_quota(bench, leases=6, revision=3).outcome is QuotaOutcome.CONFLICT
    assert set_quota(bench, leases=6, revision=2).outcome is QuotaOutcome.STALE
    shown = quota(bench)
    assert (shown.leases, shown.leases_are_default) == (5, False)
    assert (shown.sessions, shown.sessions_are_default) == (7, False)
    assert (shown.nbytes, shown.is_default) == (bench.settings.tenant_quota_bytes, True)
    set_quota(bench, leases=None, sessions=None)
    shown = quota(bench)
    assert shown.leases == bench.settings.tenant_quota_leases
    assert shown.sessions == bench.settings.tenant_quota_sessions


def test_fewer_leases_or_sessions_than_are_held_are_deferred() -> None:
    """In force for what comes; what is held comes back by itself, and then it is applied."""
    bench = Bench()
    admin(bench)
    session = bench.open()
    held = bench.grant(session, safety_class=CACHE)
    assert set_quota(bench, leases=0).outcome is QuotaOutcome.DEFERRED
    assert set_quota(bench, sessions=0, leases=1).outcome is QuotaOutcome.DEFERRED
    assert set_quota(bench, sessions=1, leases=0).outcome is QuotaOutcome.DEFERRED
    bench.release(session, held)
    bench.freed(held)
    assert set_quota(bench, leases=0).outcome is QuotaOutcome.APPLIED


@pytest.mark.parametrize(("leases", "sessions"), [(-1, UNCHANGED), (UNCHANGED, -1)])
def test_fewer_than_none_is_refused(
    leases: int | Unchanged | None, sessions: int | Unchanged | None
) -> None:
    """Whatever the wire let through."""
    bench = Bench()
    admin(bench)
    with pytest.raises(InvalidRequest, match="below 0"):
        set_quota(bench, leases=leases, sessions=sessions)


def test_lowering_below_what_is_there_takes_nothing_back() -> None:
    """No revoke, nobody put out, no violation; nothing new until enough has gone by itself."""
    bench = Bench()
    admin(bench)
    session, second = bench.open(), bench.open("s2", pid=12)
    leases = [bench.grant(session, nbytes=SMALL, safety_class=CACHE) for _ in range(3)]
    set_quota(bench, leases=1, sessions=1)
    assert bench.the(SendRevoke) == []
    bench.tick(1.0)
    with pytest.raises(QuotaExceeded):
        bench.ask(session, nbytes=SMALL, safety_class=CACHE)
    with pytest.raises(QuotaExceeded):
        bench.open("s3", pid=13)
    for lease_id in leases:
        bench.release(session, lease_id)
        bench.freed(lease_id)
    bench.reattach(second, pid=12)  # who was there may come back
    bench.grant(session, nbytes=SMALL, safety_class=CACHE)
    assert bench.snapshot.invariant_violations == 0


def test_a_new_daemon_lets_everybody_back_in() -> None:
    """Holders, and sessions that it knows nothing of, are over the counts and no violation."""
    bench = Bench()
    session, bare = bench.open(), bench.open("bare", pid=12)
    for _ in range(2):
        bench.grant(session, nbytes=SMALL, safety_class=CACHE)
    tags = tuple(bench.tags.values())
    quotas = {ALICE: Quota(revision=5, nbytes=None, leases=1, sessions=1)}
    bench.broker = Broker(bench.settings, now=bench.now, strict=True, quotas=quotas)
    bench.attach(*bench.settings.gpus, slabs=tags)
    bench.reattach(session)
    bench.reattach(bare, pid=12)
    bench.tick(0.2)
    assert (quota(bench).held_leases, quota(bench).held_sessions) == (2, 2)
    with pytest.raises(QuotaExceeded):
        bench.ask(session, nbytes=SMALL, safety_class=CACHE)
    with pytest.raises(QuotaExceeded):
        bench.open("s3", pid=13)


def test_coming_back_to_a_new_daemon_is_no_way_around_the_quota(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Anybody can say that another daemon knew it: many are believed, but not any number."""
    monkeypatch.setattr(sessions, "MOST_RETURNING_SESSIONS", 2)
    bench = Bench(tenant_quota_sessions=2, attach=False)
    for number in range(4):
        bench.reattach(SessionId(f"made-up-{number}"), pid=20 + number)
    with pytest.raises(QuotaExceeded, match="alice has 4 of its 2 sessions"):
        bench.reattach(SessionId("one-more"), pid=30)
    with pytest.raises(QuotaExceeded):
        bench.open("new", pid=31)
    bench.reattach(SessionId("bobs"), pid=32, tenant=BOB)
    assert bench.snapshot.invariant_violations == 0


def test_an_admin_gets_in_to_mend_the_quota() -> None:
    """Its own tenant has all its sessions: a few more are opened for admins, and no others."""
    bench = Bench(tenant_quota_sessions=1)
    bench.open(tenant=ROOT)
    with pytest.raises(QuotaExceeded):
        bench.open("s2", tenant=ROOT, pid=12)
    for number in range(SPARE_ADMIN_SESSIONS):
        admin(bench, f"admin-{number}")
    with pytest.raises(QuotaExceeded):
        admin(bench)
    assert bench.snapshot.invariant_violations == 0
