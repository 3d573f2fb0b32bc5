"""Processes are killed in the middle of copies: what comes back is exact, and nothing leaks."""

from __future__ import annotations

import pytest

from tests.contract.places import Place, Tenant, TenantFailed
from tests.nodes import wait_until

MANY_BYTES = 3 * 2**20


def copied(tenant: Tenant) -> int:
    said = tenant.ask("copied")
    assert said["failure"] == ""
    number = said["number"]
    assert isinstance(number, int)
    return number


def goes_on(tenant: Tenant) -> None:
    """It copies still, and every byte is right."""
    before = copied(tenant)
    wait_until(lambda: copied(tenant) > before + 3, seconds=20, what="copies go on")


@pytest.mark.limit(90)
def test_a_client_killed_in_mid_copy_leaves_nothing(place: Place) -> None:
    """Its slabs are free again, and the next tenant finds zeros."""
    with place.tenant() as survivor, place.tenant() as client:
        survivor.ask("borrow", nbytes=place.slab_bytes)
        free = place.settled_free_bytes()
        client.ask("copy_on")
        client.kill()
        wait_until(lambda: place.pool_bytes("free") >= free, seconds=20, what="its slabs are free")
        slab = survivor.ask("borrow", nbytes=place.slab_bytes)["number"]
        assert survivor.number("not_zero", number=slab) == 0


@pytest.mark.limit(90)
def test_a_daemon_killed_in_mid_copy_harms_no_byte(place: Place) -> None:
    """Copies within held leases go on without it; its successor finds every lease."""
    with place.tenant() as client:
        client.ask("park", count=3, nbytes=MANY_BYTES)
        client.ask("copy_on")
        place.node.kill_daemon()
        goes_on(client)
        assert client.ask("look") == {"states": ["exact"]}
        place.node.restart_daemon()
        goes_on(client)
        assert client.ask("stop_copying")["failure"] == ""
        assert client.ask("look") == {"states": ["exact"]}
        assert place.pool_bytes("lent") > 0


@pytest.mark.limit(120)
def test_a_keeper_killed_in_mid_copy_loses_its_slabs_and_nothing_else(place: Place) -> None:
    """What was in them is exact or `LeaseLost`, never other bytes; the client lives on."""
    with place.tenant() as client:
        client.ask("park", count=3, nbytes=MANY_BYTES)
        client.ask("copy_on")
        place.kill_keeper()
        said = client.ask("stop_copying")
        assert "came back with other bytes" not in str(said["failure"]), said
        states = client.ask("look")["states"]
        assert isinstance(states, list)
        assert set(states) <= {"exact", "lost"}
        wait_until(lambda: _lends_again(place, client), seconds=40, what="another keeper lends")


def _lends_again(place: Place, client: Tenant) -> bool:
    """The next keeper's memory is clean."""
    try:
        slab = client.ask("borrow", nbytes=place.slab_bytes)
    except TenantFailed:  # the daemon says that there is no room yet
        return False
    return client.number("not_zero", number=slab["number"]) == 0
