"""Which slabs go back instead of others: only where it saves copies, and no byte less."""

from __future__ import annotations

from typing import cast

import pytest

from aqua_client.copying import Memory
from aqua_client.records import Grant, SafetyClass
from aqua_client.slabs import Slab, Stored
from aqua_client.swapping import swaps

MIB = 2**20
STORE, CACHE = SafetyClass.STORE, SafetyClass.CACHE


def slab(
    name: str, *, mib: int = 4, used: int = 0, gpu: str = "SHM-1", safety: SafetyClass = STORE
) -> Slab:
    """One of *mib* MiB, of which so many are used."""
    grant = Grant(
        lease_id=name,
        lender_gpu=gpu,
        nbytes=mib * MIB,
        safety_class=safety,
        keeper_pid=1,
        canary=b"",
        descriptor=None,
        cuda_ipc=b"",
    )
    made = Slab(grant, cast("Memory", None), now=0.0)  # whose bytes nobody looks at here
    if used:
        made.put(used * MIB, Stored(used * MIB, safety), now=0.0)
    return made


def chosen(revoked: list[Slab], others: list[Slab]) -> dict[str, list[str]]:
    for one in revoked:
        one.is_fenced = True
    found = swaps(revoked, [*revoked, *others])
    return {swap.kept.lease_id: [one.lease_id for one in swap.given] for swap in found}


def test_an_empty_slab_goes_instead_of_one_in_use() -> None:
    """The case that it is for."""
    assert chosen([slab("full", used=3)], [slab("empty")]) == {"full": ["empty"]}


@pytest.mark.parametrize(
    "other",
    [
        slab("used", used=1),
        slab("elsewhere", gpu="SHM-2"),
        slab("small", mib=2),
        slab("cached", used=3, safety=CACHE),
    ],
    ids=lambda one: one.lease_id,
)
def test_what_saves_nothing_or_is_no_use_to_the_owner_is_not_offered(other: Slab) -> None:
    """It would be copied itself, is of another GPU, is too small, or drops as much as it saves."""
    assert chosen([slab("full", used=3)], [other]) == {}


def test_what_is_asked_for_itself_is_not_offered() -> None:
    """An empty slab that was revoked, too, goes back in any case."""
    assert chosen([slab("full", used=3), slab("empty")], []) == {}


def test_nothing_is_offered_for_what_needs_no_copy() -> None:
    """Dropping cache, and giving back what is empty, costs nothing."""
    assert chosen([slab("cached", used=3, safety=CACHE), slab("bare")], [slab("empty")]) == {}


def test_a_little_cache_is_dropped_where_more_would_have_to_be_copied() -> None:
    """It may be dropped, and `store` may not; what is empty goes before it all the same."""
    little = slab("little", used=1, safety=CACHE)
    assert chosen([slab("full", used=3)], [little]) == {"full": ["little"]}
    assert chosen([slab("full", used=3)], [little, slab("empty")]) == {"full": ["empty"]}


def test_several_small_ones_go_for_a_large_one_and_none_that_need_not() -> None:
    """At least as many bytes, and no slab more than it takes."""
    others = [slab("a"), slab("b", mib=2), slab("c", mib=8)]
    assert chosen([slab("full", mib=8, used=7)], others) == {"full": ["c"]}
    others = [slab("a"), slab("b"), slab("c", mib=2)]
    assert chosen([slab("full", mib=8, used=7)], others) == {"full": ["a", "b"]}


def test_the_fullest_is_kept_first_and_nothing_is_given_twice() -> None:
    """One empty slab saves one copy: the largest."""
    revoked = [slab("some", used=1), slab("much", used=4)]
    assert chosen(revoked, [slab("empty")]) == {"much": ["empty"]}
