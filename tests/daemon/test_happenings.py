"""The last lines: bounded, numbered, and each about the right tenant."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from aqua_daemon.adapters.happenings import LONGEST_LINE, Happenings
from aqua_daemon.adapters.journal import LogJournal
from aqua_daemon.core import events
from aqua_daemon.core.errors import NotPermitted, QuotaExceeded
from aqua_daemon.core.instructions import ForgetSession, NoteRebalance
from aqua_daemon.core.model import LeaseState, RebalanceBlock, SessionId, TenantName
from tests.daemon.samples import (
    LEASE,
    MIB,
    PROCESS,
    RECLAIM,
    REQUESTED,
    ROOM,
    SESSION_ID,
    TENANT,
    move,
)

OPENED = events.SessionOpened(
    session_id=SESSION_ID, tenant=TENANT, process=PROCESS, home_gpu=None, is_admin=False
)
THIEF = TenantName("uid-4711")
STOLEN = events.SessionReattached(
    session_id=SESSION_ID,
    request_id=REQUESTED.request_id,
    tenant=THIEF,
    process=replace(PROCESS, pid=13),
    home_gpu=None,
    is_admin=False,
    uses=(),
    host_room=ROOM,
)


@pytest.fixture
def journal() -> LogJournal:
    logger = logging.getLogger("aqua.test.happenings")
    logger.setLevel(logging.CRITICAL)
    return LogJournal(clock=lambda: 7.0, logger=logger)


def tenants(journal: LogJournal) -> list[TenantName | None]:
    return [line.tenant for line in journal.happenings.after(0)]


def test_lines_are_numbered_and_only_the_last_are_kept() -> None:
    """Memory stays bounded however long the daemon runs, and a reader knows what it missed."""
    lines = Happenings(most=3)
    assert not lines.has_forgotten(0)
    for number in range(1, 6):
        lines.remember(f"line {number}", at=float(number), tenant=None)
    assert [line.text for line in lines.after(0)] == ["line 3", "line 4", "line 5"]
    assert [line.number for line in lines.after(4)] == [5]
    assert lines.after(5) == ()
    assert [lines.has_forgotten(number) for number in range(6)] == [True, True, *[False] * 4]


def test_a_line_is_never_long() -> None:
    """A refusal quotes what a client sent; a thousand such lines must stay small."""
    lines = Happenings()
    lines.remember("x" * 10_000, at=0.0, tenant=None)
    assert len(lines.after(0)[0].text) == LONGEST_LINE


def test_each_daemon_numbers_for_itself() -> None:
    """A cursor of one daemon can be told from another's."""
    assert Happenings().epoch != Happenings().epoch


def test_what_a_session_does_is_about_its_tenant(journal: LogJournal) -> None:
    """Its opening, its refusals, its leases, its reclaims, its end."""
    journal.event(OPENED)
    journal.refused(REQUESTED, QuotaExceeded("all used"))
    journal.instructed(move(None, LeaseState.ALLOCATING))
    journal.event(RECLAIM)
    journal.event(events.ProcessEnded(session_id=SESSION_ID))
    assert tenants(journal) == [TENANT] * 5


def test_what_keepers_do_is_about_the_node(journal: LogJournal) -> None:
    """No tenant owns a GPU's line."""
    journal.event(events.KeeperEnded(gpus=(LEASE.lender,)))
    assert tenants(journal) == [None]


def test_asking_for_anothers_session_does_not_make_its_story_ones_own(journal: LogJournal) -> None:
    """Whether the books know the session already or not, the thief learns of its own try alone."""
    journal.event(OPENED)
    journal.event(STOLEN)
    journal.refused(STOLEN, NotPermitted("it is not yours"))
    journal.event(events.ProcessEnded(session_id=SESSION_ID))
    assert tenants(journal) == [TENANT, TENANT, TENANT]


def test_a_session_that_was_not_let_in_leaves_no_trace(journal: LogJournal) -> None:
    """After a refused re-attach the id is anybody's: what a keeper says of it counts."""
    journal.event(STOLEN)
    journal.refused(STOLEN, NotPermitted("it is not yours"))
    journal.instructed(move(None, LeaseState.LEASED))  # adopted from a keeper, for its true tenant
    journal.event(events.ProcessEnded(session_id=SESSION_ID))
    assert tenants(journal) == [THIEF, TENANT, TENANT]


def test_a_session_that_is_over_is_forgotten(journal: LogJournal) -> None:
    """So that what is kept does not grow with every process that ever came."""
    journal.event(OPENED)
    journal.instructed(ForgetSession(session_id=SESSION_ID))
    journal.event(events.ProcessEnded(session_id=SESSION_ID))
    assert tenants(journal) == [TENANT, None]


def test_a_rebalance_is_told_with_its_reason_to_who_gives(journal: LogJournal) -> None:
    """Done or not: how much was asked back, or what was in the way."""
    done = NoteRebalance(
        tenant=TENANT, for_tenant=THIEF, nbytes=4 * MIB, reason="it has too much", block=None
    )
    journal.instructed(done, replace(done, nbytes=0, block=RebalanceBlock.OUT_OF_REACH))
    assert [line.text for line in journal.happenings.after(0)] == [
        "rebalance, 4 MiB asked back: it has too much",
        "rebalance, blocked: out_of_reach: it has too much",
    ]
    assert tenants(journal) == [TENANT, TENANT]


def test_that_an_observer_came_and_went_is_no_news(journal: LogJournal) -> None:
    """What it did and what it was refused is told, its coming and going is not; the next one's is."""
    watching = replace(OPENED, is_observer=True)
    for _ in range(3):
        journal.event(watching)
        journal.event(events.PresenceEnded(session_id=SESSION_ID))
        journal.event(events.ProcessEnded(session_id=SESSION_ID))
        journal.instructed(ForgetSession(session_id=SESSION_ID))
    assert tenants(journal) == []
    journal.event(watching)
    journal.refused(REQUESTED, QuotaExceeded("all used"))
    journal.instructed(move(None, LeaseState.LEASED))
    assert tenants(journal) == [TENANT, TENANT]
    journal.instructed(ForgetSession(session_id=SESSION_ID))
    journal.event(OPENED)
    assert len(tenants(journal)) == 3


def test_another_session_is_not_confused_with_it(journal: LogJournal) -> None:
    """A refusal of one session says nothing of the one that came before it."""
    journal.event(OPENED)
    other = replace(OPENED, session_id=SessionId("07" * 16), tenant=THIEF)
    journal.event(other)
    journal.refused(REQUESTED, QuotaExceeded("all used"))
    journal.refused(replace(REQUESTED, session_id=other.session_id), QuotaExceeded("all used"))
    assert tenants(journal) == [TENANT, THIEF, TENANT, THIEF]
