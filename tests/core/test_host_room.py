"""The ledger of host memory: reserved with the lease, outliving it, rebuilt after a restart."""

from __future__ import annotations

import pytest

from aqua_daemon.core.errors import InsufficientHostRoom
from aqua_daemon.core.events import HostRoomRequested, ProcessEnded
from aqua_daemon.core.instructions import AnswerHostRoom
from aqua_daemon.core.model import HostRoom, RequestId, SessionId
from tests.core.bench import ALICE, BOB, CACHE, GPU_BYTES, NEAR, SLAB, Bench, room, use


def ask_room(
    bench: Bench, session: SessionId, host_room: HostRoom, request_id: str = ""
) -> list[AnswerHostRoom]:
    bench.handle(
        HostRoomRequested(
            session_id=session,
            request_id=RequestId(request_id) if request_id else bench.request_id(),
            host_room=host_room,
        )
    )
    return bench.the(AnswerHostRoom)


def reserved(bench: Bench) -> int:
    return bench.snapshot.host_reserved_bytes


def test_a_store_slab_reserves_its_size_until_it_is_returned() -> None:
    """From the promise on; a cache slab reserves nothing."""
    bench = Bench()
    session = bench.open()
    lease_id = bench.ask(session)
    assert reserved(bench) == SLAB
    bench.ask(session, safety_class=CACHE)
    assert reserved(bench) == SLAB
    other = bench.grant(session)
    assert bench.tenant(ALICE).host_reserved_bytes == 2 * SLAB
    bench.release(session, other)
    assert reserved(bench) == SLAB
    assert bench.state(lease_id) is not None


def test_a_store_slab_that_the_pool_can_not_back_is_refused() -> None:
    """With both figures and the remedy; nothing changes."""
    bench = Bench(host_pool_bytes=2 * SLAB - 1)
    session = bench.open()
    bench.grant(session)
    before = bench.snapshot
    with pytest.raises(InsufficientHostRoom, match="host_pool_bytes") as caught:
        bench.ask(session)
    assert "32 of 64 MiB" in str(caught.value)
    assert bench.snapshot == before
    bench.grant(session, safety_class=CACHE)


def test_a_tenant_has_its_share_of_the_pool() -> None:
    """What one tenant can't have, another can."""
    bench = Bench(tenant_host_bytes=SLAB)
    first, second = bench.open("s1", pid=1), bench.open("s2", pid=2, tenant=BOB)
    bench.grant(first)
    with pytest.raises(InsufficientHostRoom, match="alice 32 of 32 MiB"):
        bench.ask(first)
    bench.grant(second)
    assert reserved(bench) == 2 * SLAB


def test_a_quarantined_store_slab_keeps_its_room() -> None:
    """Its holder may still evacuate it."""
    bench = Bench()
    session = bench.open()
    bench.grant(session)
    bench.report(NEAR, {11: 0})
    bench.reclaim(session, 1)
    bench.tick(3.0)
    assert bench.gpu(NEAR).quarantined_bytes == SLAB
    assert reserved(bench) == SLAB


def test_what_was_evacuated_stays_reserved_after_its_lease() -> None:
    """The acknowledgement states what is in host memory now; its slab had covered it."""
    bench = Bench(host_pool_bytes=SLAB)
    session = bench.open()
    lease_id = bench.grant(session)
    bench.acknowledge(session, lease_id, host_room=room(1, SLAB))
    assert reserved(bench) == SLAB
    bench.freed(lease_id)
    assert reserved(bench) == SLAB
    assert ask_room(bench, session, room(2, 0))[0].host_room == room(2, 0)
    assert reserved(bench) == 0


def test_what_returned_slabs_covered_is_taken_in_a_pool_that_is_overdrawn() -> None:
    """A daemon that restarted with a smaller pool: bytes only changed places."""
    bench = Bench(attach=False)
    bench.attach(*bench.settings.gpus)
    session = bench.open()
    lease_id, other = bench.grant(session), bench.grant(session)
    tags = tuple(bench.tags.values())
    bench.settings = Bench(attach=False, host_pool_bytes=SLAB // 2).settings
    bench.restart()
    bench.attach(*bench.settings.gpus, slabs=tags)
    bench.reattach(session)
    assert reserved(bench) == 2 * SLAB
    bench.acknowledge(session, lease_id, host_room=room(1, SLAB))
    assert reserved(bench) == 2 * SLAB
    bench.release(session, other)
    assert reserved(bench) == SLAB


def test_a_holder_of_slabs_that_is_back_keeps_what_it_has_in_host_memory() -> None:
    """The keeper told of its slabs first; these bytes exist, whatever the pool is now."""
    bench = Bench()
    session = bench.open()
    bench.grant(session)
    ask_room(bench, session, room(1, SLAB))
    tags = tuple(bench.tags.values())
    bench.settings = Bench(attach=False, host_pool_bytes=SLAB).settings
    bench.restart()
    bench.attach(*bench.settings.gpus, slabs=tags)
    bench.reattach(session, host_room=room(2, SLAB))
    assert reserved(bench) == 2 * SLAB
    bench.keepalive(session, host_room=room(3, 2 * SLAB))
    assert reserved(bench) == 2 * SLAB


def test_a_statement_takes_effect_as_far_as_there_is_room() -> None:
    """An acknowledgement is never turned away for its figures, and a claim takes no one's room."""
    bench = Bench(host_pool_bytes=2 * SLAB)
    session = bench.open()
    lease_id = bench.grant(session)
    bench.acknowledge(session, lease_id, host_room=room(1, 100 * SLAB))
    assert reserved(bench) == 2 * SLAB
    other = bench.open("s2", pid=2, tenant=BOB)
    bench.keepalive(other, host_room=room(1, SLAB))
    assert bench.tenant(BOB).host_reserved_bytes == 0


def test_what_did_not_fit_is_taken_with_the_return_that_covers_it() -> None:
    """A keepalive may state what was evacuated before the acknowledgement says of which slab."""
    bench = Bench(tenant_host_bytes=SLAB)
    session = bench.open()
    lease_id = bench.grant(session)
    bench.report(NEAR, {11: GPU_BYTES})
    bench.keepalive(session, use(lease_id), host_room=room(1, SLAB // 2))
    assert reserved(bench) == SLAB
    bench.acknowledge(session, lease_id, host_room=room(1, SLAB // 2))
    assert reserved(bench) == SLAB // 2


def test_what_did_not_fit_is_taken_when_there_is_room() -> None:
    """The next keepalive says the same."""
    bench = Bench(host_pool_bytes=SLAB)
    first, second = bench.open("s1", pid=1), bench.open("s2", pid=2, tenant=BOB)
    lease_id = bench.grant(first)
    bench.keepalive(second, host_room=room(1, SLAB // 2))
    bench.release(first, lease_id)
    assert reserved(bench) == 0
    bench.keepalive(second, host_room=room(1, SLAB // 2))
    assert reserved(bench) == SLAB // 2


def test_a_late_revision_changes_nothing() -> None:
    """Messages may overtake each other; the highest revision counts."""
    bench = Bench()
    session = bench.open()
    ask_room(bench, session, room(5, 10))
    assert ask_room(bench, session, room(4, 99))[0].host_room == room(5, 10)
    bench.keepalive(session, host_room=room(5, 99))
    bench.keepalive(session, host_room=room(3, 99))
    assert reserved(bench) == 10


def test_a_rise_that_does_not_fit_is_refused_and_a_fall_always_taken() -> None:
    """Asking is not stating."""
    bench = Bench(host_pool_bytes=SLAB)
    session = bench.open()
    ask_room(bench, session, room(1, SLAB))
    with pytest.raises(InsufficientHostRoom):
        ask_room(bench, session, room(2, SLAB + 1))
    assert reserved(bench) == SLAB
    assert ask_room(bench, session, room(3, 1))[0].host_room == room(3, 1)
    assert reserved(bench) == 1


def test_a_repeated_request_for_room_gets_its_first_answer() -> None:
    """One effect per request id."""
    bench = Bench()
    session = bench.open()
    [first] = ask_room(bench, session, room(1, 10), "r")
    ask_room(bench, session, room(2, 20))
    assert ask_room(bench, session, room(1, 10), "r") == [first]
    assert reserved(bench) == 20


def test_the_room_of_a_dead_process_is_free() -> None:
    """Its memory went with it; that of its slabs waits for the proof like the slabs."""
    bench = Bench()
    session = bench.open()
    bench.grant(session)
    ask_room(bench, session, room(1, 10))
    assert reserved(bench) == SLAB + 10
    bench.handle(ProcessEnded(session_id=session))
    assert reserved(bench) == SLAB


def test_a_new_broker_learns_what_is_held_in_host_memory() -> None:
    """From re-attaches, within the tenant's share, though the pool may be smaller now."""
    bench = Bench(tenant_host_bytes=3 * SLAB, host_pool_bytes=SLAB)
    bench.restart()
    first = SessionId("s1")
    bench.reattach(first, host_room=room(7, 2 * SLAB))
    assert reserved(bench) == 2 * SLAB
    second = SessionId("s2")
    bench.reattach(second, host_room=room(3, 50 * SLAB), pid=12)
    assert bench.tenant(ALICE).host_reserved_bytes == 3 * SLAB
    bench.attach(*bench.settings.gpus)
    with pytest.raises(InsufficientHostRoom):
        bench.ask(first)
