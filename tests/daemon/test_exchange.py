"""An exchange over the daemon's real sockets: its answer, its push, its refusals, and what is written."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest
from aqua_protos import broker_pb2
from aqua_protos.agreement import LEASE_EXCHANGE
from grpc import aio

from aqua_daemon.adapters.audit import audited
from aqua_daemon.adapters.grpc_servicer import REASON_KEY
from aqua_daemon.adapters.journal import in_words
from aqua_daemon.adapters.tally import RevokeOutcome, Tally
from aqua_daemon.core.instructions import AnswerExchange, NoteMove
from aqua_daemon.core.model import LeaseId, RevokeReason
from aqua_daemon.core.sizes import MIB
from tests.core.test_exchanging import Node
from tests.daemon.in_process import GPUS, Client, greeted, lease_of, new_id, running

Story = Callable[[Client, LeaseId, LeaseId], Awaitable[None]]


def request(spared: list[LeaseId], offered: list[LeaseId]) -> broker_pb2.ExchangeRequest:
    return broker_pb2.ExchangeRequest(
        request_id=new_id(), spared_lease_ids=spared, offered_lease_ids=offered
    )


def with_a_revoke(story: Story) -> None:
    """Run *story* with a client that is an owner of SHM-1, too: one slab was revoked, one is left."""

    async def run() -> None:
        async with running() as node, greeted(node, home_gpu="SHM-0") as client:
            node.keepers.own(GPUS[1], pid=os.getpid(), nbytes=MIB)
            held = [lease_of(await client.acquire()) for _ in range(2)]
            for _ in held:
                await client.receive()  # the slabs' descriptors
            reclaim = broker_pb2.ReclaimRequest(request_id=new_id(), gpu="SHM-1", nbytes=1)
            pending = asyncio.create_task(client.call("Reclaim", reclaim))
            [revoked] = (await client.receive()).revoke.lease_ids
            [other] = [one for one in held if one != revoked]
            await story(client, LeaseId(revoked), other)
            pending.cancel()

    asyncio.run(run())


async def refused(client: Client, message: broker_pb2.ExchangeRequest) -> tuple[str, str]:
    """The status and the reason that a client counts."""
    with pytest.raises(aio.AioRpcError) as caught:
        await client.call("Exchange", message)
    metadata = caught.value.trailing_metadata() or ()
    reasons = [str(value) for key, value in metadata if key == REASON_KEY]
    return caught.value.code().name, reasons[0]


def test_the_welcome_names_the_feature() -> None:
    """Who does not hear the name does not ask, so an older daemon is never asked."""

    async def story() -> None:
        async with running() as node, Client(node) as client:
            welcome = (await client.hello()).welcome
            assert LEASE_EXCHANGE in welcome.features

    asyncio.run(story())


def test_an_exchange_is_answered_and_what_comes_instead_is_pushed() -> None:
    """With the reason of the revoke and what is left of its time; a repeat changes nothing."""

    async def story(client: Client, revoked: LeaseId, other: LeaseId) -> None:
        message = request([revoked], [other])
        reply = broker_pb2.ExchangeReply.FromString(await client.call("Exchange", message))
        assert (list(reply.spared_lease_ids), list(reply.revoked_lease_ids)) == ([revoked], [other])
        push = (await client.receive()).revoke
        assert (list(push.lease_ids), push.reason, push.lender_gpu) == ([other], "reclaim", "SHM-1")
        assert 0 < push.deadline_seconds <= 0.25
        assert await client.call("Exchange", message) == reply.SerializeToString()
        states = broker_pb2.GetStateReply.FromString(await client.call("GetState", b"")).leases
        assert {one.lease_id: one.state for one in states} == {
            revoked: broker_pb2.LEASE_STATE_LEASED,
            other: broker_pb2.LEASE_STATE_REVOKING,
        }
        assert {one.reason for one in states} == {"", "reclaim"}

    with_a_revoke(story)


def test_a_refusal_has_its_reason() -> None:
    """Whatever is wrong with it, nothing is exchanged."""

    async def story(client: Client, revoked: LeaseId, other: LeaseId) -> None:
        gone = await refused(client, request([other], [revoked]))
        assert gone == ("FAILED_PRECONDITION", "exchange_gone")
        for empty in (request([revoked], []), request([], [other])):
            assert await refused(client, empty) == ("INVALID_ARGUMENT", "invalid")
        twice = request([revoked], [other, other])
        assert await refused(client, twice) == ("INVALID_ARGUMENT", "invalid")

    with_a_revoke(story)


def exchanged() -> tuple[AnswerExchange, list[NoteMove], Tally]:
    """One of the core: its answer, its moves, and the counts of a whole story."""
    node, tally = Node(), Tally()
    node.swap()
    [answer], moves = node.the(AnswerExchange), node.the(NoteMove)
    for instruction in node.last:
        tally.instructed(instruction)
    for instruction in node.acknowledge(node.borrower, *node.others[:1]):
        tally.instructed(instruction)
    return answer, moves, tally


def test_both_revokes_end_in_the_counts() -> None:
    """One was spared, the other returned: with the same reason, and a duration each."""
    _, _, tally = exchanged()
    counts = tally.counts()
    reclaim = RevokeReason.RECLAIM
    assert counts.revokes[reclaim, RevokeOutcome.SPARED] == 1
    assert counts.revokes[reclaim, RevokeOutcome.RETURNED] == 1
    assert sum(counts.revokes.values()) == sum(counts.revoke_durations.counts) == 2


def test_both_moves_are_written_with_what_they_were_asked_for() -> None:
    """Who, what and why: the reason of the revoke that one of them ends and the other takes over."""
    _, moves, _ = exchanged()
    lines = [audited(note) for note in moves]
    assert [(line["before"], line["after"], line["move"]) for line in lines] == [
        ("leased", "revoking", "exchanged"),
        ("revoking", "leased", "spared"),
    ]
    assert [(line["reason"], line["pid"]) for line in lines] == [("reclaim", 60)] * 2


def test_an_event_says_which_lease_stays_and_which_goes_instead() -> None:
    """For people, beside the two moves."""
    answer, moves, _ = exchanged()
    spared, revoked = answer.spared[0][:8], answer.revoked[0][:8]
    assert in_words(answer) == f"lease {spared} kept on SHM-1, lease {revoked} given back instead"
    assert [in_words(note).partition(": ")[2] for note in moves] == [
        "leased -> revoking (exchanged)",
        "revoking -> leased (spared)",
    ]
