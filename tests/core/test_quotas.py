"""Quotas that admins set: who may, which revision wins, what is granted under them."""

from __future__ import annotations

import pytest

from aqua_daemon.core.broker import Broker
from aqua_daemon.core.errors import InvalidRequest, NotPermitted, QuotaExceeded, UnknownSession
from aqua_daemon.core.events import UNCHANGED, QuotaSet, SessionOpened, Unchanged
from aqua_daemon.core.instructions import AnswerQuota, SendRevoke
from aqua_daemon.core.limits import UNSET, Quota, QuotaOutcome
from aqua_daemon.core.model import LeaseState, RequestId, SessionId, TenantName
from aqua_daemon.core.node_snapshot import QuotaSnapshot
from aqua_daemon.core.sizes import MIB, MOST_QUOTAS
from tests.core.bench import ALICE, BOB, CACHE, NEAR, SLAB, Bench, process

ROOT = TenantName("root")
BLUE = TenantName("alice+blue")
APPLIED, STALE, CONFLICT = QuotaOutcome.APPLIED, QuotaOutcome.STALE, QuotaOutcome.CONFLICT


def admin(bench: Bench) -> SessionId:
    session_id = SessionId("admin")
    bench.handle(
        SessionOpened(
            session_id=session_id,
            tenant=ROOT,
            process=process(1),
            home_gpu=None,
            is_admin=True,
        )
    )
    return session_id


def set_quota(
    bench: Bench,
    nbytes: int | None,
    *,
    tenant: TenantName = ALICE,
    revision: int | None = None,
    by: SessionId = SessionId("admin"),  # noqa: B008 - a name, and frozen
    request_id: RequestId | None = None,
) -> AnswerQuota:
    bench.handle(
        QuotaSet(
            session_id=by,
            request_id=request_id or bench.request_id(),
            tenant=tenant,
            nbytes=nbytes,
            revision=revision,
        )
    )
    [answer] = bench.the(AnswerQuota)
    return answer


def quota(bench: Bench, tenant: TenantName = ALICE) -> QuotaSnapshot:
    return next(one for one in bench.snapshot.quotas if one.tenant == tenant)


@pytest.mark.parametrize(
    ("before", "nbytes", "revision", "outcome", "after"),
    [
        (UNSET, SLAB, None, APPLIED, Quota(revision=1, nbytes=SLAB)),
        (UNSET, SLAB, 7, APPLIED, Quota(revision=7, nbytes=SLAB)),
        (UNSET, 0, None, APPLIED, Quota(revision=1, nbytes=0)),
        (UNSET, None, None, APPLIED, Quota(revision=1, nbytes=None)),
        (Quota(revision=3, nbytes=1), SLAB, None, APPLIED, Quota(revision=4, nbytes=SLAB)),
        (Quota(revision=3, nbytes=1), SLAB, 4, APPLIED, Quota(revision=4, nbytes=SLAB)),
        (Quota(revision=3, nbytes=1), SLAB, 9, APPLIED, Quota(revision=9, nbytes=SLAB)),
        (Quota(revision=3, nbytes=1), None, 4, APPLIED, Quota(revision=4, nbytes=None)),
        (Quota(revision=3, nbytes=1), 1, 3, APPLIED, Quota(revision=3, nbytes=1)),
        (Quota(revision=3, nbytes=1), SLAB, 3, CONFLICT, Quota(revision=3, nbytes=1)),
        (Quota(revision=3, nbytes=1), None, 3, CONFLICT, Quota(revision=3, nbytes=1)),
        (Quota(revision=3, nbytes=None), 1, 3, CONFLICT, Quota(revision=3, nbytes=None)),
        (Quota(revision=3, nbytes=1), SLAB, 2, STALE, Quota(revision=3, nbytes=1)),
        (Quota(revision=3, nbytes=1), 1, 2, STALE, Quota(revision=3, nbytes=1)),
    ],
)
def test_the_later_revision_wins(
    before: Quota, nbytes: int | None, revision: int | None, outcome: QuotaOutcome, after: Quota
) -> None:
    """The answer says what came of it and what is in force, which the snapshot shows."""
    bench = Bench()
    bench.broker = Broker(
        bench.settings,
        now=bench.now,
        strict=True,
        quotas={ALICE: before} if before.revision else {},
    )
    admin(bench)
    answer = set_quota(bench, nbytes, revision=revision)
    assert (answer.outcome, answer.quota) == (outcome, after)
    assert (answer.tenant, answer.session_id) == (ALICE, "admin")
    shown = quota(bench)
    default = bench.settings.tenant_quota_bytes
    assert shown.nbytes == (default if after.nbytes is None else after.nbytes)
    assert (shown.revision, shown.is_default) == (after.revision, after.nbytes is None)


def test_a_repeated_request_has_one_effect() -> None:
    """The second gets the first one's answer, though a later setting came between."""
    bench = Bench()
    admin(bench)
    first = set_quota(bench, SLAB, request_id=RequestId("r"))
    set_quota(bench, 2 * SLAB)
    assert set_quota(bench, SLAB, request_id=RequestId("r")) == first
    assert quota(bench).nbytes == 2 * SLAB


def test_only_a_living_admin_sets_quotas() -> None:
    """Others are refused, and nothing changes."""
    bench = Bench()
    session = bench.open()
    with pytest.raises(NotPermitted, match="only an admin"):
        set_quota(bench, SLAB, by=session)
    with pytest.raises(UnknownSession):
        set_quota(bench, SLAB)
    assert quota(bench).revision == 0


@pytest.mark.parametrize(
    ("nbytes", "revision", "says"), [(-1, None, "below 0"), (1, 0, "the first is 1")]
)
def test_what_can_be_no_quota_is_refused(nbytes: int, revision: int | None, says: str) -> None:
    """Whatever the wire let through."""
    bench = Bench()
    admin(bench)
    with pytest.raises(InvalidRequest, match=says):
        set_quota(bench, nbytes, revision=revision)


def test_settings_are_bounded() -> None:
    """Names that were never a tenant's can't fill the daemon; those that are set may change."""
    bench = Bench()
    quotas = {
        TenantName(f"uid-{number}"): Quota(revision=1, nbytes=1) for number in range(MOST_QUOTAS)
    }
    bench.broker = Broker(bench.settings, now=bench.now, strict=True, quotas=quotas)
    admin(bench)
    with pytest.raises(InvalidRequest, match="no more can be kept"):
        set_quota(bench, SLAB)
    assert set_quota(bench, SLAB, tenant=TenantName("uid-7")).outcome is APPLIED


def test_grants_stop_at_the_quota_and_others_go_on() -> None:
    """Raising it lets more through at once; the default is everybody else's."""
    bench = Bench()
    admin(bench)
    session, other = bench.open(), bench.open("s2", tenant=BOB, pid=12)
    set_quota(bench, SLAB)
    bench.grant(session, safety_class=CACHE)
    with pytest.raises(QuotaExceeded, match="alice holds 32 of its 32 MiB"):
        bench.ask(session, safety_class=CACHE)
    bench.grant(other, safety_class=CACHE)
    set_quota(bench, 2 * SLAB)
    bench.grant(session, safety_class=CACHE)
    assert quota(bench).held_bytes == 2 * SLAB
    assert bench.tenant(ALICE).quota_bytes == 2 * SLAB


def test_lowering_below_what_is_held_takes_nothing_back() -> None:
    """No revoke, no violation; grants are barred until enough has come back."""
    bench = Bench()
    admin(bench)
    session = bench.open()
    leases = [bench.grant(session, safety_class=CACHE) for _ in range(3)]
    assert set_quota(bench, 2 * SLAB, revision=4).outcome is QuotaOutcome.DEFERRED
    assert set_quota(bench, 2 * SLAB, revision=4).outcome is QuotaOutcome.DEFERRED
    assert set_quota(bench, SLAB, revision=4).outcome is CONFLICT
    assert bench.the(SendRevoke) == []
    assert bench.tick(1.0) is not None
    assert bench.snapshot.invariant_violations == 0
    with pytest.raises(QuotaExceeded):
        bench.ask(session, safety_class=CACHE)
    for lease_id in leases[:2]:
        bench.release(session, lease_id)
        bench.freed(lease_id)
    bench.grant(session, safety_class=CACHE)
    with pytest.raises(QuotaExceeded):
        bench.ask(session, safety_class=CACHE)


def test_what_was_promised_before_the_quota_fell_still_comes() -> None:
    """A slab that is being made counts as held: it is granted, and the next is not."""
    bench = Bench()
    admin(bench)
    session = bench.open()
    bench.ask(session, safety_class=CACHE)
    set_quota(bench, 0)
    assert quota(bench).held_bytes == SLAB
    with pytest.raises(QuotaExceeded):
        bench.ask(session, safety_class=CACHE)


def test_a_sub_tenant_has_its_own_quota_within_its_tenants() -> None:
    """The lower of the two that has no room stops it; back at the default only its tenant's does."""
    bench = Bench()
    admin(bench)
    blue, plain = bench.open("blue", tenant=BLUE), bench.open("plain", pid=12)
    set_quota(bench, SLAB, tenant=BLUE)
    bench.grant(blue, safety_class=CACHE)
    with pytest.raises(QuotaExceeded, match="alice\\+blue holds"):
        bench.ask(blue, safety_class=CACHE)
    bench.grant(plain, safety_class=CACHE)
    set_quota(bench, 3 * SLAB)
    set_quota(bench, None, tenant=BLUE)
    bench.grant(blue, safety_class=CACHE)
    with pytest.raises(QuotaExceeded, match="alice holds 96 of its 96 MiB"):
        bench.ask(blue, safety_class=CACHE)
    assert quota(bench).held_bytes == 3 * SLAB
    assert quota(bench, BLUE).held_bytes == 2 * SLAB


def test_a_new_daemon_knows_what_was_set_and_lets_holders_keep_more() -> None:
    """What its keepers hold may be over a quota; that is no violation, and no more is granted."""
    bench = Bench()
    session = bench.open()
    for _ in range(2):
        bench.grant(session, safety_class=CACHE)
    tags = tuple(bench.tags.values())
    quotas = {ALICE: Quota(revision=5, nbytes=SLAB)}
    bench.broker = Broker(bench.settings, now=bench.now, strict=True, quotas=quotas)
    bench.attach(*bench.settings.gpus, slabs=tags)
    bench.reattach(session)
    bench.tick(0.2)
    assert not bench.is_restarting()
    assert (quota(bench).revision, quota(bench).held_bytes) == (5, 2 * SLAB)
    with pytest.raises(QuotaExceeded):
        bench.ask(session, safety_class=CACHE)
    assert bench.gpu(NEAR).trouble == ""


def rank(bench: Bench, **what: float | Unchanged | None) -> AnswerQuota:
    bench.handle(
        QuotaSet(
            session_id=SessionId("admin"),
            request_id=bench.request_id(),
            tenant=ALICE,
            nbytes=UNCHANGED,
            revision=None,
            **what,  # type: ignore[arg-type]  # weight or priority
        )
    )
    [answer] = bench.the(AnswerQuota)
    return answer


def test_who_has_less_priority_is_asked_first() -> None:
    """Set by an admin, it turns the order around; set back, it is as before."""
    bench = Bench()
    admin(bench)
    first, second = bench.open(), bench.open("s2", tenant=BOB, pid=12)
    bench.open("owner", tenant=BOB, pid=77)
    mine, theirs = bench.grant(first, safety_class=CACHE), bench.grant(second, safety_class=CACHE)
    bench.report(NEAR, {77: MIB})
    assert rank(bench, priority=5).quota.priority == 5
    bench.reclaim(SessionId("owner"), SLAB)
    assert (bench.state(mine), bench.state(theirs)) == (LeaseState.LEASED, LeaseState.REVOKING)
    assert rank(bench, priority=None).quota == Quota(revision=2, nbytes=None)
    assert (quota(bench).priority, quota(bench).priority_is_default) == (0, True)


def test_a_weight_is_part_of_the_setting_with_its_revision() -> None:
    """What is not named stays; the snapshot shows what is in force."""
    bench = Bench()
    admin(bench)
    assert rank(bench, weight=2.5).quota == Quota(revision=1, nbytes=None, weight=2.5)
    assert set_quota(bench, SLAB).quota == Quota(revision=2, nbytes=SLAB, weight=2.5)
    assert (quota(bench).weight, quota(bench).weight_is_default) == (2.5, False)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ({"weight": 0.0}, "give 0.01 to 100"),
        ({"weight": float("nan")}, "give 0.01 to 100"),
        ({"weight": 1000.0}, "give 0.01 to 100"),
        ({"priority": 1001}, "give -1000 to 1000"),
    ],
)
def test_ranks_out_of_range_are_refused(what: dict[str, float], says: str) -> None:
    """With the range; nothing is set."""
    bench = Bench()
    admin(bench)
    with pytest.raises(InvalidRequest, match=says):
        rank(bench, **what)
    assert bench.snapshot.quotas[0].revision == 0
