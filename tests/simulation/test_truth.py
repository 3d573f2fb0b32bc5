"""The model's own parts: time and order, processes and mappings, and what the oracle sees of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aqua_daemon.core.model import (
    GpuUuid,
    Lease,
    LeaseId,
    LeaseState,
    ProcessIdentity,
    RequestId,
    SafetyClass,
    SessionId,
    SlabTag,
    TenantName,
)
from aqua_daemon.core.sizes import MIB
from tests.simulation.agenda import Agenda, Stream
from tests.simulation.chance import Chance
from tests.simulation.holdings import BytesDiffer, Holdings
from tests.simulation.judge import Violation
from tests.simulation.keepers import Keeper
from tests.simulation.leaks import strings_in
from tests.simulation.node import Node
from tests.simulation.stage import Stage
from tests.simulation.story import Story
from tests.simulation.truth import Gpu, Process, Slab

_HOLDER = ProcessIdentity(pid=7, start_ticks=1, uid=1000)
_TAG = SlabTag(
    lease_id=LeaseId("1"),
    session_id=SessionId("2"),
    tenant=TenantName("uid-1000"),
    safety_class=SafetyClass.STORE,
    lender=GpuUuid("SHM-0"),
    borrower=None,
    nbytes=4 * MIB,
    holder=_HOLDER,
    request_id=RequestId("3"),
)
_LEASE = Lease(
    lease_id=_TAG.lease_id,
    session_id=_TAG.session_id,
    tenant=_TAG.tenant,
    lender=_TAG.lender,
    borrower=None,
    nbytes=_TAG.nbytes,
    safety_class=_TAG.safety_class,
    request_id=_TAG.request_id,
    state=LeaseState.LEASED,
    since=0.0,
)


def _stage() -> Stage:
    return Stage(agenda=Agenda(), chance=Chance(1), story=Story())


def _process() -> Process:
    return Process(_HOLDER, _TAG.tenant)


def test_what_is_due_happens_in_the_order_of_its_time() -> None:
    """Time goes forward, and things of one time keep the order in which they were planned."""
    agenda, seen = Agenda(), list[str]()
    agenda.after(2.0, lambda: seen.append("late"))
    agenda.after(1.0, lambda: seen.append("early"))
    agenda.after(1.0, lambda: seen.append("early too"))
    agenda.run_until(1.5)
    assert seen == ["early", "early too"]
    agenda.run_until(3.0)
    assert seen[-1] == "late"
    assert agenda.now == 3.0


def test_nothing_overtakes_in_a_stream() -> None:
    """However long each message takes, they arrive in the order they were sent."""
    agenda, seen = Agenda(), list[int]()
    stream = Stream(agenda, Chance(3), pauses=0.5)
    for number in range(200):
        agenda.after(number * 0.001, lambda number=number: stream.send(lambda: seen.append(number)))  # type: ignore[misc]
    agenda.run_until(60.0)
    assert seen == list(range(200))


def test_a_cut_loses_a_tail() -> None:
    """What arrives of a cut stream is the beginning of what was sent."""
    agenda, seen = Agenda(), list[int]()
    stream = Stream(agenda, Chance(3))
    for number in range(5):
        stream.send(lambda number=number: seen.append(number))  # type: ignore[misc]
    stream.cut(arriving=2)
    stream.send(lambda: seen.append(99))
    agenda.run_until(10.0)
    assert seen == [0, 1]


def test_a_child_keeps_what_its_parent_mapped() -> None:
    """The death of a parent unmaps nothing in its child."""
    process, slab = _process(), Slab(tag=_TAG)
    process.map(slab)
    child = process.fork(8)
    process.end()
    assert [slab.mappers, process.family_lives] == [[child], True]
    child.end()
    assert [slab.mappers, process.family_lives] == [[], False]


def test_freeing_a_slab_that_its_holder_maps_is_seen() -> None:
    """The keeper's free is judged by who really maps the slab."""
    node, process, slab = Node(1), _process(), Slab(tag=_TAG)
    process.map(slab)
    with pytest.raises(Violation, match="is freed while"):
        node.oracle.freed(slab)


def test_freeing_under_a_child_is_seen_unless_the_holder_had_given_the_slab_back() -> None:
    """A child's mapping counts until its parent has claimed to be done with the slab."""
    node, process, slab = Node(1), _process(), Slab(tag=_TAG)
    process.map(slab)
    process.fork(8)
    process.end()
    with pytest.raises(Violation, match="is freed while"):
        node.oracle.freed(slab)
    node.oracle.claimed((_TAG.lease_id,))
    node.oracle.freed(slab)


def test_a_slab_opened_by_another_process_is_seen() -> None:
    """A grant must be a slab that was made for the very process that opens it."""
    node, slab = Node(1), Slab(tag=_TAG)
    stranger = Process(replace(_HOLDER, pid=9), _TAG.tenant)
    with pytest.raises(Violation, match="opens a slab made for"):
        node.oracle.mapped(stranger, _LEASE, slab)
    node.oracle.mapped(_process(), _LEASE, slab)


def test_a_slab_that_another_tenant_could_read_is_seen() -> None:
    """No slab may ever have had readers of two tenants."""
    node, slab = Node(1), Slab(tag=_TAG)
    Process(replace(_HOLDER, pid=9), TenantName("uid-1001")).map(slab)
    with pytest.raises(Violation, match="readable to"):
        node.oracle.mapped(_process(), _LEASE, slab)


def test_bytes_left_in_a_granted_slab_are_seen() -> None:
    """A slab comes scrubbed."""
    slab = Slab(tag=_TAG, items={1: 2})
    with pytest.raises(BytesDiffer, match="with bytes in it"):
        Holdings(_process(), _stage()).take(_LEASE, slab)


def test_a_slab_that_was_freed_under_its_holder_reads_as_different() -> None:
    """The holder finds out by reading, and a loss with the keeper is the only excuse."""
    gpu = Gpu(_TAG.lender, 64 * MIB)
    keeper = Keeper([gpu], chance=Chance(5), on_free=lambda _: None)
    keeper.allocate(_TAG)
    holdings = Holdings(_process(), _stage())
    holdings.take(_LEASE, gpu.slabs[_TAG.lease_id])
    assert holdings.put(1000, SafetyClass.STORE)
    (number,) = holdings.items
    holdings.read(number)
    keeper.free(gpu.uuid, _TAG.lease_id)
    with pytest.raises(BytesDiffer, match="read as None"):
        holdings.read(number)


def test_bytes_lost_with_their_keeper_are_lost_and_no_more() -> None:
    """The end of a keeper takes its slabs; the client goes on without the item."""
    gpu = Gpu(_TAG.lender, 64 * MIB)
    keeper = Keeper([gpu], chance=Chance(5), on_free=lambda _: None)
    keeper.allocate(_TAG)
    holdings = Holdings(_process(), _stage())
    holdings.take(_LEASE, gpu.slabs[_TAG.lease_id])
    holdings.put(1000, SafetyClass.STORE)
    keeper.end()
    holdings.evacuate(_TAG.lease_id)
    assert not holdings.items
    assert holdings.host_bytes == 0


def test_evacuation_keeps_store_and_drops_cache() -> None:
    """What is moved to the host counts there; what is `cache` is gone."""
    holdings = Holdings(_process(), _stage())
    cache_lease = replace(_LEASE, lease_id=LeaseId("9"), safety_class=SafetyClass.CACHE)
    cache_tag = replace(_TAG, lease_id=LeaseId("9"), safety_class=SafetyClass.CACHE)
    holdings.take(_LEASE, Slab(tag=_TAG))
    holdings.take(cache_lease, Slab(tag=cache_tag))
    holdings.put(1000, SafetyClass.STORE)
    holdings.put(2000, SafetyClass.CACHE)
    holdings.evacuate(_TAG.lease_id)
    holdings.evacuate(cache_tag.lease_id)
    assert holdings.host_bytes == 1000
    assert len(holdings.items) == 1


def test_every_string_that_an_object_remembers_is_found() -> None:
    """In attributes, slots, dictionaries and lists, but not in attributes that are left out."""
    agenda = Agenda()
    process = _process()
    found = strings_in([process, {"key": ("deep", [agenda])}])
    assert {"uid-1000", "key", "deep"} <= found
    assert "uid-1000" not in strings_in(process, but=("tenant",))
