"""The ledger keeps every sum as records come, change and go; deadlines come in order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aqua_daemon.core.deadlines import Deadlines
from aqua_daemon.core.errors import UnknownSession
from aqua_daemon.core.ledger import Ledger
from aqua_daemon.core.model import (
    HostRoom,
    Lease,
    LeaseId,
    LeaseState,
    RequestId,
    Revocation,
    RevokeReason,
    SafetyClass,
    Session,
    SessionId,
    SessionState,
    TenantName,
    owner_of,
)
from tests.core.bench import ALICE, CACHE, HOME, NEAR, STORE, process, room

SESSION = SessionId("s")
HELD = [state for state in LeaseState if state is not LeaseState.LOST]


def session(*, tenant: TenantName = ALICE, host_room: HostRoom | None = None) -> Session:
    return Session(
        session_id=SESSION,
        tenant=tenant,
        process=process(1),
        home_gpu=HOME,
        is_admin=False,
        state=SessionState.LIVE,
        heard_at=0.0,
        host_room=host_room or room(0, 0),
    )


def lease(
    state: LeaseState,
    *,
    name: str = "l",
    nbytes: int = 10,
    safety_class: SafetyClass = STORE,
    tenant: TenantName = ALICE,
) -> Lease:
    return Lease(
        lease_id=LeaseId(name),
        session_id=SESSION,
        tenant=tenant,
        lender=NEAR,
        borrower=HOME,
        nbytes=nbytes,
        safety_class=safety_class,
        request_id=RequestId("r"),
        state=state,
        since=0.0,
    )


@pytest.fixture
def ledger() -> Ledger:
    made = Ledger((HOME, NEAR))
    made.open_session(session())
    return made


@pytest.mark.parametrize("state", HELD)
def test_a_slab_counts_wherever_it_is_held(ledger: Ledger, state: LeaseState) -> None:
    """In the GPU's, the tenant's and its owner's sums, from the first state to the last."""
    ledger.enter(lease(state))
    assert ledger.gpus[NEAR].bytes_in[state] == 10
    assert ledger.gpus[NEAR].held_bytes == 10
    assert ledger.tenants[ALICE].held_bytes == 10
    assert ledger.owner(ALICE).held_bytes == 10
    assert ledger.gpus[HOME].held_bytes == 0


def test_a_lost_slab_is_in_no_sum(ledger: Ledger) -> None:
    """Its bytes do not exist any more."""
    ledger.enter(lease(LeaseState.LEASED))
    ledger.replace(lease(LeaseState.LOST))
    assert ledger.gpus[NEAR].held_bytes == 0
    assert ledger.tenants[ALICE].held_bytes == 0
    assert ledger.host_bytes == 0
    assert LeaseId("l") in ledger.leases


@pytest.mark.parametrize("state", list(LeaseState))
def test_host_room_backs_a_store_slab_while_it_may_have_to_be_evacuated(
    ledger: Ledger, state: LeaseState
) -> None:
    """Not once it is returned, and never for cache."""
    ledger.enter(lease(state))
    ledger.enter(lease(state, name="cache", safety_class=CACHE))
    is_backed = state in {
        LeaseState.ALLOCATING,
        LeaseState.LEASED,
        LeaseState.REVOKING,
        LeaseState.QUARANTINED,
    }
    assert ledger.host_bytes == (10 if is_backed else 0)
    assert ledger.session_accounts[SESSION].backed_bytes == ledger.host_bytes


@pytest.mark.parametrize("state", list(LeaseState))
def test_what_is_coming_back_is_known(ledger: Ledger, state: LeaseState) -> None:
    """Asked back, returned or being freed; what is quarantined did not come."""
    ledger.enter(lease(state))
    is_coming = state in {LeaseState.REVOKING, LeaseState.RETURNED, LeaseState.FREEING}
    assert ledger.gpus[NEAR].coming_bytes == (10 if is_coming else 0)


def test_a_slab_that_is_recalled_before_it_is_made_is_coming_back(ledger: Ledger) -> None:
    """It will be freed when it arrives."""
    ledger.enter(lease(LeaseState.ALLOCATING))
    revocation = Revocation(reason=RevokeReason.RECLAIM, started_at=0.0, deadline=2.0)
    ledger.replace(replace(lease(LeaseState.ALLOCATING), revocation=revocation))
    assert ledger.gpus[NEAR].coming_bytes == 10


def test_everything_is_zero_when_all_has_gone(ledger: Ledger) -> None:
    """Sums come back to where they began, and a tenant without anything leaves the books."""
    for state in LeaseState:
        ledger.enter(lease(state))
        for after in LeaseState:
            ledger.replace(lease(after))
        ledger.strike(LeaseId("l"))
    account = ledger.gpus[NEAR]
    assert set(account.bytes_in.values()) == {0}
    assert (account.held_bytes, account.coming_bytes, account.leases) == (0, 0, {})
    assert ledger.session_accounts[SESSION].leases_on == {}
    assert ledger.session_accounts[SESSION].recalled == {}
    ledger.close_session(SESSION)
    assert (ledger.tenants, ledger.owners, ledger.host_bytes) == ({}, {}, 0)


def test_a_sessions_host_room_is_in_the_sums_of_tenant_and_node(ledger: Ledger) -> None:
    """As it is replaced, and until the session is closed."""
    ledger.replace_session(session(host_room=room(1, 7)))
    assert (ledger.host_bytes, ledger.owner(ALICE).host_bytes) == (7, 7)
    ledger.replace_session(session(host_room=room(2, 3)))
    assert (ledger.host_bytes, ledger.owner(ALICE).host_bytes) == (3, 3)
    ledger.close_session(SESSION)
    assert ledger.host_bytes == 0


def test_sub_tenants_are_summed_apart_and_together() -> None:
    """Each has its own line, their owner the sum."""
    ledger = Ledger((NEAR,))
    blue = TenantName("alice+blue")
    ledger.open_session(session(tenant=blue))
    ledger.enter(lease(LeaseState.LEASED, tenant=blue))
    ledger.enter(lease(LeaseState.LEASED, name="other", tenant=ALICE))
    assert ledger.tenants[blue].held_bytes == ledger.tenants[ALICE].held_bytes == 10
    assert ledger.owner(blue).held_bytes == ledger.owner(ALICE).held_bytes == 20
    assert owner_of(blue) == owner_of(ALICE) == ALICE


def test_who_holds_nothing_has_an_empty_account(ledger: Ledger) -> None:
    """Asking makes no entry."""
    assert ledger.owner(TenantName("carol")).held_bytes == 0
    assert TenantName("carol") not in ledger.owners


def test_a_session_that_is_dead_or_unknown_is_refused(ledger: Ledger) -> None:
    """With the remedy."""
    assert ledger.living_session(SESSION) == session()
    ledger.replace_session(replace(session(), state=SessionState.DEAD))
    for session_id in (SESSION, SessionId("nobody")):
        with pytest.raises(UnknownSession, match="open a new one"):
            ledger.living_session(session_id)


def test_a_closed_session_takes_its_limits_along(ledger: Ledger) -> None:
    """Its say about the GPU ends with it."""
    ledger.gpus[NEAR].limits[SESSION] = 5
    limits = [ledger.gpus[NEAR].limit_bytes]
    ledger.close_session(SESSION)
    limits.append(ledger.gpus[NEAR].limit_bytes)
    assert limits == [5, None]


def test_deadlines_are_taken_in_order_and_only_when_due() -> None:
    """Oldest first, those of one time as they were pushed; what is not due stays."""
    deadlines: Deadlines[str] = Deadlines()
    assert not deadlines.take_due(100.0)
    for at, key in ((3.0, "c"), (1.0, "a"), (2.0, "b1"), (2.0, "b2")):
        deadlines.push(at, key)
    assert deadlines.next_at == 1.0
    assert deadlines.take_due(0.9) == []
    assert deadlines.take_due(2.0) == [(1.0, "a"), (2.0, "b1"), (2.0, "b2")]
    assert deadlines.next_at == 3.0
