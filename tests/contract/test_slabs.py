"""A slab is what was granted, empty but for its canary, and nobody's but its holder's."""

from __future__ import annotations

import time

import pytest

from tests.contract.places import Place
from tests.nodes import wait_until

PATTERN, OTHER = 0xA5, 0x5C
LOOK_SECONDS = 1.5


def test_a_slab_begins_with_its_canary_and_is_empty_behind_it(place: Place) -> None:
    """64 bytes tell that it is the one that was granted; nothing is left of anybody."""
    with place.tenant() as tenant:
        slab = tenant.ask("borrow", nbytes=place.slab_bytes)
        assert slab["nbytes"] == place.slab_bytes
        assert slab["gpu"] == place.lender_gpu
        assert slab["keeper_pid"] == place.keeper_pid()
        assert slab["start"] == slab["canary"] != "00" * 64
        assert tenant.number("not_zero", number=slab["number"]) == 0
        tenant.ask("fill", number=slab["number"], byte=PATTERN)
        assert tenant.number("equal", number=slab["number"], byte=PATTERN) == place.slab_bytes
        tenant.ask("give_back", number=slab["number"])


def test_two_tenants_never_see_each_others_bytes(place: Place) -> None:
    """What one writes is in its own slab, and in no other, now and after it has gone."""
    with place.tenant() as one, place.tenant() as other:
        first = one.ask("borrow", nbytes=place.slab_bytes)["number"]
        one.ask("fill", number=first, byte=PATTERN)
        second = other.ask("borrow", nbytes=place.slab_bytes)["number"]
        assert other.number("not_zero", number=second) == 0
        other.ask("fill", number=second, byte=OTHER)
        assert one.number("equal", number=first, byte=PATTERN) == place.slab_bytes
        one.ask("give_back", number=first)
        assert other.number("equal", number=second, byte=OTHER) == place.slab_bytes
        third = other.ask("borrow", nbytes=place.slab_bytes)["number"]
        assert other.number("not_zero", number=third) == 0


def test_a_slab_of_this_very_process_is_refused(place: Place) -> None:
    """What exports can't open: an equal pid is another namespace's, and that is said."""
    with place.tenant() as tenant:
        said = tenant.ask("as_if_its_keeper", nbytes=place.slab_bytes)
        assert said == {"reason": "pid_namespace", "open": False}


def test_memory_that_is_not_the_slab_granted_is_refused(place: Place) -> None:
    """A handle can come to mean other memory; the canary tells, and nothing stays mapped."""
    with place.tenant() as tenant:
        tenant.ask("with_another_canary", nbytes=place.slab_bytes)  # warms up what opening needs
        said = tenant.ask("with_another_canary", nbytes=place.slab_bytes)
        assert said == {"reason": "canary", "more_mappings": 0}


def test_bytes_count_as_free_only_when_nobody_has_them(place: Place) -> None:
    """A tenant says that it gave a slab back, and keeps it mapped: it stays out of what is free."""
    with place.tenant() as honest, place.tenant() as liar:
        honest.ask("borrow", nbytes=place.slab_bytes)
        slab = liar.ask("borrow", nbytes=place.slab_bytes)["number"]
        liar.ask("fill", number=slab, byte=PATTERN)
        wait_until(lambda: place.pool_bytes("lent") == 2 * place.slab_bytes, what="both are lent")
        free = place.settled_free_bytes()
        liar.ask("lie", number=slab)
        assert _most_that_was_free(place) < free + place.slab_bytes // 2
        assert place.pool_bytes("lent") == place.slab_bytes
        liar.ask("unmap", number=slab)
        whole = free + place.slab_bytes - place.slack_bytes
        wait_until(lambda: place.pool_bytes("free") >= whole, what="now it is free")


def _most_that_was_free(place: Place) -> int:
    """Looked at all the time, over several reports of the keeper's."""
    end, most = time.monotonic() + LOOK_SECONDS, 0
    while time.monotonic() < end:
        most = max(most, place.pool_bytes("free"))
    return most


@pytest.mark.limit(120)
def test_no_bytes_of_the_last_tenant_over_many_leases(place: Place) -> None:
    """Every lease begins with zeros, however often the memory was somebody's before."""
    with place.tenant() as one, place.tenant() as other:
        for tenant in (one, other):  # what looking itself takes of a GPU, it takes once
            tenant.ask("cycles", count=1, nbytes=place.slab_bytes, byte=PATTERN)
        place.await_none_lent()
        free = place.settled_free_bytes()
        for tenant, byte in ((one, PATTERN), (other, OTHER)):
            assert tenant.number("cycles", count=25, nbytes=place.slab_bytes, byte=byte) == 0
        place.await_all_free(free)


def test_every_dtype_and_layout_comes_back_bit_by_bit(place: Place) -> None:
    """Written into memory that another process made, and read from it; none by way of the host."""
    with place.tenant() as tenant:
        assert tenant.ask("page_everything") == {"wrong": [], "tiers": ["peer"]}
