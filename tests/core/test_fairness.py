"""Weighted max-min shares: by hand, and what must hold for any demands and weights."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqua_daemon.core.fairness import Party, fair_shares, in_whole_slabs, max_min
from aqua_daemon.core.model import TenantName
from aqua_daemon.core.rebalancing import recalls

_DEMANDS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=2),
    st.tuples(st.integers(0, 1000), st.floats(0.1, 10.0)),
    min_size=1,
    max_size=8,
)


def party(
    name: str,
    held: int,
    wanted: int = 0,
    *,
    stuck: int = 0,
    leaving: int = 0,
    weight: float = 1.0,
    owner_weight: float = 1.0,
) -> Party:
    return Party(
        tenant=TenantName(name),
        held_bytes=held,
        wanted_bytes=wanted,
        stuck_bytes=stuck,
        leaving_bytes=leaving,
        weight=weight,
        owner_weight=owner_weight,
    )


@pytest.mark.parametrize(
    ("capacity", "demands", "weights", "shares"),
    [
        (90, (100, 100, 100), (1, 1, 1), (30, 30, 30)),
        (90, (10, 100, 100), (1, 1, 1), (10, 40, 40)),  # what one leaves the others share
        (90, (100, 100), (2, 1), (60, 30)),
        (90, (20, 100, 100), (4, 1, 2), (20, 23.333, 46.667)),
        (90, (20, 30), (1, 1), (20, 30)),  # enough for all
        (0, (20, 30), (1, 1), (0, 0)),
    ],
)
def test_shares_by_hand(
    capacity: float,
    demands: tuple[float, ...],
    weights: tuple[float, ...],
    shares: tuple[float, ...],
) -> None:
    """Water-filling, as one does it with a pencil."""
    found = max_min(capacity, dict(enumerate(demands)), dict(enumerate(weights)))
    assert [found[key] for key in range(len(demands))] == pytest.approx(shares, abs=1e-3)


@given(st.floats(0, 5000), _DEMANDS)
def test_nobody_can_have_more_without_taking_from_somebody_who_has_less(
    capacity: float, wishes: dict[str, tuple[int, float]]
) -> None:
    """What defines max-min: shares within demand, all given out, and a level that nobody is above."""
    demands = {name: float(demand) for name, (demand, _) in wishes.items()}
    weights = {name: weight for name, (_, weight) in wishes.items()}
    shares = max_min(capacity, demands, weights)
    assert all(0 <= shares[name] <= demands[name] for name in demands)
    assert sum(shares.values()) == pytest.approx(min(capacity, sum(demands.values())), abs=1e-6)
    thirsty = [name for name in demands if shares[name] < demands[name] - 1e-6]
    for name in thirsty:
        level = shares[name] / weights[name]
        assert all(shares[other] / weights[other] <= level + 1e-6 for other in demands)


def test_many_names_buy_a_tenant_nothing() -> None:
    """Sub-tenants divide what their tenant gets, by their own weights."""
    shares = fair_shares(
        120,
        [
            party("uid-1", 100),
            party("uid-2+a", 0, 100),
            party("uid-2+b", 0, 100, weight=2.0),
            party("uid-2+c", 0, 10),
        ],
    )
    assert shares == pytest.approx(
        {"uid-1": 60, "uid-2+a": 50 / 3, "uid-2+b": 100 / 3, "uid-2+c": 10}
    )


def test_a_weight_is_that_of_the_whole_tenant() -> None:
    """Three times the weight, three times the memory, however it is divided within."""
    shares = fair_shares(
        100,
        [
            party("uid-1+a", 100, owner_weight=3.0),
            party("uid-1+b", 100, owner_weight=3.0),
            party("uid-2", 100),
        ],
    )
    assert shares == pytest.approx({"uid-1+a": 37.5, "uid-1+b": 37.5, "uid-2": 25})


@pytest.mark.parametrize(
    ("stuck", "shares"),
    [
        (20, (30, 30, 30)),  # what can't be given back is the first of its own share
        (50, (50, 20, 20)),
        (100, (100, 0, 0)),
    ],
)
def test_what_is_stuck_comes_out_of_the_share_of_who_keeps_it(
    stuck: int, shares: tuple[float, ...]
) -> None:
    """Others have less only where somebody keeps more than its share."""
    demands, floors = {0: 100, 1: 100, 2: 100}, {0: stuck}
    found = max_min(90, demands, dict.fromkeys(demands, 1.0), floors)
    assert tuple(found.values()) == pytest.approx(shares)


def test_what_leaves_a_tenant_already_is_not_above_its_share() -> None:
    """It is not asked for again, nor anything of its share in its place."""
    parties = (party("a", 60, leaving=20), party("b", 60), party("c", 0, 100))
    shares = {TenantName("a"): 40.0, TenantName("b"): 40.0, TenantName("c"): 40.0}
    found = recalls(parties, shares, smallest_bytes=4, coming_bytes=20)
    assert [(one.tenant, one.nbytes) for one in found] == [("b", 20)]


def test_what_is_asked_back_leaves_nobody_below_its_share() -> None:
    """The one furthest above gives first, each no more than it has above, all no more than needed."""
    parties = (party("a", 70), party("b", 50), party("c", 0, 100))
    shares = {TenantName("a"): 40.0, TenantName("b"): 40.0, TenantName("c"): 40.0}
    found = recalls(parties, shares, smallest_bytes=4, coming_bytes=0)
    assert [(one.tenant, one.nbytes, one.for_tenant) for one in found] == [
        ("a", 30, "c"),
        ("b", 10, "c"),
    ]
    assert found[0].reason.startswith("a holds 0 MiB, its fair share is")


@pytest.mark.parametrize(("coming", "asked"), [(0, 30), (20, 20), (38, 0), (100, 0)])
def test_what_is_on_its_way_is_not_asked_for_again(coming: int, asked: int) -> None:
    """What can be granted already serves who wants more before anybody is asked."""
    parties = (party("a", 70), party("b", 50), party("c", 0, 100))
    shares = dict.fromkeys((TenantName("a"), TenantName("b"), TenantName("c")), 40.0)
    found = recalls(parties, shares, smallest_bytes=4, coming_bytes=coming)
    assert found[0].nbytes == asked if asked else found == []


def test_less_than_a_slab_is_no_reason_to_move_anything() -> None:
    """Neither what somebody has above its share nor what another lacks."""
    shares = dict.fromkeys((TenantName("a"), TenantName("c")), 40.0)
    near = (party("a", 43), party("c", 37, 100))
    assert recalls(near, shares, smallest_bytes=4, coming_bytes=0) == []


@given(_DEMANDS, _DEMANDS, st.integers(0, 2000))
def test_a_suggestion_that_was_followed_is_never_followed_by_its_opposite(
    held: dict[str, tuple[int, float]], wanted: dict[str, tuple[int, float]], spare: int
) -> None:
    """After all bytes have moved as suggested, whoever gave is not one who lacks."""
    names = {**held, **wanted}
    parties = [
        party(name, held.get(name, (0, 1.0))[0], wanted.get(name, (0, 1.0))[0], owner_weight=weight)
        for name, (_, weight) in names.items()
    ]
    shares = fair_shares(sum(one.held_bytes for one in parties) + spare, parties)
    gave = recalls(parties, shares, smallest_bytes=5, coming_bytes=spare)
    for one in gave:
        [giver] = [found for found in parties if found.tenant == one.tenant]
        assert giver.held_bytes - one.nbytes >= shares[one.tenant] - 1
        assert one.for_tenant != one.tenant


def test_many_small_lacks_are_one_slab_that_somebody_has_too_many() -> None:
    """Three lack less than a slab each: whoever misses most gets what a fourth has above its share."""
    parties = (party("a", 19, 100), party("b", 15, 100), party("c", 16, 100), party("d", 14, 100))
    shares = fair_shares(64, parties)
    assert recalls(parties, shares, smallest_bytes=4, coming_bytes=0) == []
    slabs = in_whole_slabs(fair_shares(64, parties), parties, 4)
    assert list(slabs.values()) == [16, 16, 16, 16]
    uneven = (party("a", 24, 100), party("b", 12, 100), party("c", 12, 100), party("d", 12, 100))
    slabs = in_whole_slabs(fair_shares(60, uneven), uneven, 4)
    assert list(slabs.values()) == [16, 16, 16, 12]
    [moved] = recalls(uneven, slabs, smallest_bytes=4, coming_bytes=0)
    assert (moved.tenant, moved.nbytes) == ("a", 8)


def test_a_share_that_breathes_leaves_slabs_where_they_are() -> None:
    """What is left when all are rounded down goes to who has it, though another misses more."""
    shares = {TenantName("a"): 6.5, TenantName("b"): 5.5}
    assert in_whole_slabs(shares, (party("a", 4, 8), party("b", 8)), 4) == {"a": 4, "b": 8}
    assert in_whole_slabs(shares, (party("a", 8), party("b", 4, 8)), 4) == {"a": 8, "b": 4}


@given(_DEMANDS, st.integers(0, 2000), st.integers(1, 50))
def test_whole_slabs_are_near_their_shares_and_stay(
    wanted: dict[str, tuple[int, float]], capacity: int, slab: int
) -> None:
    """Each is less than a slab away, all are no more than before, and who has its slabs keeps them."""
    weights = {name: weight for name, (_, weight) in wanted.items()}
    asking = [party(n, 0, want, owner_weight=weights[n]) for n, (want, _) in wanted.items()]
    shares = fair_shares(capacity, asking)
    slabs = in_whole_slabs(shares, asking, slab)
    assert all(slabs[name] % slab == 0 for name in slabs)
    assert all(abs(slabs[name] - shares[name]) <= slab for name in slabs)
    assert sum(slabs.values()) <= sum(shares.values()) + 1
    assert sum(slabs.values()) > sum(shares.values()) - slab
    settled = [
        party(n, slabs[TenantName(n)], max(0, want - slabs[TenantName(n)]), owner_weight=weights[n])
        for n, (want, _) in wanted.items()
    ]
    assert in_whole_slabs(shares, settled, slab) == slabs
