"""A holder answers a revoke with other leases: for no byte less, none later, or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aqua_daemon.core.errors import (
    BrokerError,
    ExchangeGone,
    ExchangeRefused,
    ExchangeTooLate,
    ExchangeTooSmall,
    IntegrityViolation,
    InvalidRequest,
    NotExchangeable,
    SessionSuspect,
    UnknownSession,
)
from aqua_daemon.core.events import DrainRequested, PresenceEnded, ProcessEnded
from aqua_daemon.core.instructions import AnswerExchange, AnswerReclaim, NoteMove, SendRevoke
from aqua_daemon.core.lifecycle import Move
from aqua_daemon.core.model import LeaseId, LeaseState, RequestId, RevokeReason, SessionId
from aqua_daemon.core.sizes import MIB
from tests.core.bench import CACHE, FAR, HOME, NEAR, SLAB, Bench, use

LEASED, REVOKING = LeaseState.LEASED, LeaseState.REVOKING


class Node(Bench):
    """An owner of NEAR, a borrower that holds slabs there, and which of them was asked back."""

    def __init__(self, *, count: int = 3, asked_bytes: int = 1, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]  # as of Bench
        self.owner = self.open("owner", pid=50, home=NEAR)
        self.report(NEAR, {50: MIB})
        self.borrower = self.open("borrower", pid=60)
        self.held = [self.grant(self.borrower) for _ in range(count)]
        if asked_bytes:
            self.ask_back(asked_bytes)

    def ask_back(self, nbytes: int) -> None:
        self.reclaim(self.owner, nbytes, seconds=4.0)
        [self.order] = self.the(SendRevoke)

    @property
    def asked(self) -> tuple[LeaseId, ...]:
        return self.order.lease_ids

    @property
    def others(self) -> tuple[LeaseId, ...]:
        return tuple(one for one in self.held if one not in self.asked)

    def swap(self, request_id: RequestId | None = None) -> None:
        spared = self.asked
        others = self.others[: len(spared)]
        self.exchange(self.borrower, spared=spared, offered=others, request_id=request_id)


def test_other_leases_of_the_same_size_come_instead_with_the_same_deadline() -> None:
    """The revoked one stays, another one is revoked as it was, and its holder is told both ways."""
    node = Node()
    before = node.lease(node.asked[0]).revocation
    node.now += 0.5
    node.swap()
    [answer] = node.the(AnswerExchange)
    assert (answer.gpu, answer.spared, answer.revoked) == (NEAR, node.asked, node.others[:1])
    [order] = node.the(SendRevoke)
    assert (order.lease_ids, order.deadline) == (node.others[:1], node.order.deadline)
    assert (order.reason, order.nbytes) == (RevokeReason.RECLAIM, SLAB)
    assert node.lease(node.asked[0]).revocation is None
    assert node.lease(node.others[0]).revocation == before
    assert node.moves == [(LEASED, REVOKING, "exchanged"), (REVOKING, LEASED, "spared")]
    assert node.moves[1] == (REVOKING, LEASED, Move.SPARED.value)
    assert [note.spared for note in node.the(NoteMove)] == [None, before]


def test_the_owner_gets_its_bytes_of_what_came_instead() -> None:
    """The reclaim waits for the others now: what is spared owes it nothing."""
    node = Node()
    node.swap()
    node.acknowledge(node.borrower, *node.others[:1])
    node.freed(*node.others[:1])
    [answer] = node.the(AnswerReclaim)
    assert (answer.revoked_bytes, answer.freed_bytes, answer.quarantined_bytes) == (SLAB, SLAB, 0)
    assert node.state(node.asked[0]) is LEASED


def test_every_reclaim_that_waits_for_it_waits_for_what_came_instead() -> None:
    """A second owner that waits for the same slab loses nothing either."""
    node = Node()
    node.reclaim(node.owner, 1)
    node.swap()
    node.acknowledge(node.borrower, *node.others[:1])
    node.freed(*node.others[:1])
    assert [answer.freed_bytes for answer in node.the(AnswerReclaim)] == [SLAB, SLAB]


def test_more_bytes_may_be_given_than_were_asked_for() -> None:
    """Two for one: both are owed, and the answer says so."""
    node = Node()
    node.exchange(node.borrower, spared=node.asked, offered=node.others)
    node.acknowledge(node.borrower, *node.others)
    node.freed(*node.others)
    [answer] = node.the(AnswerReclaim)
    assert (answer.revoked_bytes, answer.freed_bytes) == (2 * SLAB, 2 * SLAB)


def test_what_came_instead_is_quarantined_at_the_same_deadline() -> None:
    """An exchange buys no time: the reclaim ends when it would have."""
    node = Node()
    node.now += 1.9
    node.swap()
    node.tick(2.2)
    assert node.state(node.others[0]) is LeaseState.QUARANTINED
    assert node.state(node.asked[0]) is LEASED
    node.keepalive(node.borrower, *(use(lease_id) for lease_id in node.held))
    node.tick(2.0)
    [answer] = node.the(AnswerReclaim)
    assert answer.quarantined_bytes == SLAB


def test_a_spared_lease_must_be_named_like_any_other() -> None:
    """Its term begins anew: whoever names it no more loses it."""
    node = Node(asked_bytes=0)
    for _ in range(3):
        node.tick(3.1)
        node.keepalive(node.borrower, *(use(one) for one in node.held))
    node.ask_back(1)
    node.tick(1.0)  # it would have been looked at now, had it not been revoked
    node.swap()
    for _ in range(4):
        node.keepalive(node.borrower, *(use(one) for one in node.held if one not in node.asked))
        node.tick(3.0)
    revocation = node.lease(node.asked[0]).revocation
    assert revocation is not None
    assert revocation.reason is RevokeReason.UNCLAIMED


def test_a_spared_lease_can_be_revoked_again() -> None:
    """It is an ordinary lease, with a deadline of its own."""
    node = Node()
    node.swap()
    node.now += 1.0
    node.reclaim(node.owner, 3 * SLAB, seconds=4.0)
    assert node.state(node.asked[0]) is REVOKING
    revocation = node.lease(node.asked[0]).revocation
    assert revocation is not None
    assert revocation.deadline == pytest.approx(node.now + 4.0)


def test_a_repeated_exchange_has_one_effect_and_the_same_answer() -> None:
    """Also when what it did is over."""
    node = Node()
    node.swap(RequestId("x"))
    [answer] = node.the(AnswerExchange)
    node.acknowledge(node.borrower, *node.others[:1])
    node.now += 10.0
    node.swap(RequestId("x"))
    assert node.the(AnswerExchange) == [answer]
    assert node.moves == []


def test_the_answer_to_the_old_revoke_still_gives_back_what_was_spared() -> None:
    """A holder that did not hear of its exchange has evacuated it: nothing is lost or leaked."""
    node = Node()
    node.swap()
    node.acknowledge(node.borrower, *node.asked)
    node.freed(*node.asked)
    assert node.state(node.asked[0]) is None
    assert node.state(node.others[0]) is REVOKING


def refused(node: Node, kind: type[BrokerError], *, session: SessionId | None = None) -> str:
    """The message of a refusal; nothing has changed by it."""
    before = node.snapshot
    with pytest.raises(kind) as caught:
        node.exchange(session or node.borrower, spared=node.asked, offered=node.others[:1])
    assert node.snapshot == before
    return str(caught.value)


def test_an_answer_that_crosses_an_acknowledgement_is_refused() -> None:
    """What was given back is not revoked any more."""
    node = Node()
    node.acknowledge(node.borrower, *node.asked)
    assert "freeing, not revoking" in refused(node, ExchangeGone)


def test_what_is_offered_must_be_leased() -> None:
    """Not given back, and not revoked itself."""
    node = Node()
    node.release(node.borrower, *node.others[:1])
    assert "not leased" in refused(node, ExchangeGone)


def test_others_leases_are_nothing_to_offer_and_nothing_to_spare() -> None:
    """Another session's are unknown to it, whatever they are."""
    node = Node(asked_bytes=0)
    stranger = node.open("stranger", pid=61)
    foreign = node.grant(stranger)
    node.keepalive(stranger, use(foreign))  # so that it is not the first to be asked
    node.ask_back(1)
    assert "no lease of this session" in refused(node, ExchangeGone, session=stranger)
    with pytest.raises(ExchangeGone, match="no lease of this session, not leased"):
        node.exchange(node.borrower, spared=node.asked, offered=(foreign,))


def test_fewer_bytes_are_refused_with_both_figures() -> None:
    """An owner never gets less than was asked for it."""
    node = Node(count=1, asked_bytes=0)
    node.held.append(node.grant(node.borrower, nbytes=SLAB // 2))
    node.keepalive(node.borrower, use(node.held[1]))
    node.ask_back(SLAB)
    assert f"{SLAB // 2} bytes are offered for {SLAB}" in refused(node, ExchangeTooSmall)


def test_the_second_half_of_a_revokes_time_is_for_evacuating() -> None:
    """What is offered late could not be emptied in time."""
    node = Node()
    node.now += 2.1
    assert "evacuate what was revoked" in refused(node, ExchangeTooLate)


def test_leases_of_another_gpu_are_of_no_use_to_an_owner() -> None:
    """The bytes have to be its own."""
    node = Node(gpus=(HOME, NEAR, FAR), count=0, asked_bytes=0)
    node.report(FAR, {51: 100 * MIB})  # so that NEAR has more to lend
    near = node.grant(node.borrower)
    assert node.lease(near).lender == NEAR
    node.report(NEAR, {50: 150 * MIB})
    far = node.grant(node.borrower)
    assert node.lease(far).lender == FAR
    node.reclaim(node.owner, 1)
    with pytest.raises(InvalidRequest, match="of one GPU"):
        node.exchange(node.borrower, spared=(near,), offered=(far,))


def test_an_exchange_answers_one_revoke() -> None:
    """What has several deadlines has no one deadline to hand on."""
    node = Node(count=4)
    node.now += 0.1
    node.reclaim(node.owner, 2 * SLAB, seconds=4.0)
    asked = tuple(one for one in node.held if node.state(one) is REVOKING)
    rest = tuple(one for one in node.held if node.state(one) is LEASED)
    with pytest.raises(InvalidRequest, match="answers one revoke"):
        node.exchange(node.borrower, spared=asked, offered=rest)


@pytest.mark.parametrize(
    ("spared", "offered"), [((), (1,)), ((0,), ()), ((0,), (0,)), ((0,), (1, 1))]
)
def test_an_exchange_names_some_leases_of_each_kind_once(
    spared: tuple[int, ...], offered: tuple[int, ...]
) -> None:
    """Nothing for something, and something for itself, are no exchange."""
    node = Node()
    held = (*node.asked, *node.others)
    with pytest.raises(InvalidRequest, match="each of them once"):
        node.exchange(
            node.borrower,
            spared=tuple(held[number] for number in spared),
            offered=tuple(held[number] for number in offered),
        )


def test_where_all_that_is_lent_has_to_go_nothing_is_exchanged() -> None:
    """A drain takes everything there; what is adopted or granted meanwhile as well."""
    node = Node(count=2)
    admin = node.open("admin", pid=99, is_admin=True)
    node.handle(
        DrainRequested(
            session_id=admin, request_id=node.request_id(), gpus=(NEAR,), deadline_seconds=None
        )
    )
    refused(node, ExchangeRefused)


def test_just_what_was_not_claimed_has_to_come() -> None:
    """It is not bytes that are wanted but these leases."""
    node = Node(asked_bytes=0)
    for _ in range(4):
        node.keepalive(node.borrower, *(use(one) for one in node.held[1:]))
        node.tick(3.0)
    assert node.state(node.held[0]) is REVOKING
    with pytest.raises(NotExchangeable, match="unclaimed"):
        node.exchange(node.borrower, spared=(node.held[0],), offered=(node.held[1],))


def test_who_was_not_heard_in_time_exchanges_nothing() -> None:
    """As it is granted nothing."""
    node = Node()
    node.handle(PresenceEnded(session_id=node.borrower))
    refused(node, SessionSuspect)


def test_the_dead_exchange_nothing() -> None:
    """An answer that its process did not live to see done."""
    node = Node()
    node.handle(ProcessEnded(session_id=node.borrower))
    refused(node, UnknownSession)


def test_a_cache_slab_may_stand_for_a_store_slab() -> None:
    """Its holder decides what of its own it would rather lose; the deadline is the revoke's."""
    node = Node(count=1, asked_bytes=0)
    cache = node.grant(node.borrower, safety_class=CACHE)
    node.keepalive(node.borrower, use(node.held[0], used_bytes=0), use(cache))
    node.reclaim(node.owner, 1)
    [order] = node.the(SendRevoke)
    assert order.lease_ids == (node.held[0],)
    node.exchange(node.borrower, spared=order.lease_ids, offered=(cache,))
    revocation = node.lease(cache).revocation
    assert revocation is not None
    assert revocation.deadline == order.deadline


def test_host_room_stays_behind_what_was_spared() -> None:
    """An exchange reserves nothing, and frees nothing."""
    node = Node()
    before = node.snapshot
    node.swap()
    assert node.snapshot.host_reserved_bytes == before.host_reserved_bytes
    assert node.snapshot.tenants == before.tenants
    assert node.gpu(NEAR).lendable_bytes == before.gpus[1].lendable_bytes


def test_a_lease_that_is_leased_and_revoked_at_once_is_a_violation() -> None:
    """So would be a spared lease that kept its deadline."""
    node = Node()
    books = node.broker._books
    lease_id = node.asked[0]
    books.ledger.leases[lease_id] = replace(books.ledger.leases[lease_id], state=LEASED)
    with pytest.raises(IntegrityViolation, match="leased, and still revoked"):
        node.broker.check_integrity()


def test_a_reclaim_that_waits_for_what_is_leased_is_a_violation() -> None:
    """So would be one that still waits for what was spared."""
    node = Node()
    books = node.broker._books
    owed = books.reclaims[0]
    node.swap()
    books.reclaims[0] = owed
    with pytest.raises(IntegrityViolation, match="a reclaim waits for it"):
        node.broker.check_integrity()
