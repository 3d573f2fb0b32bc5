"""Tenants of other users and namespaces: their own memory, and their own account of it."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.contract.places import Place

OWN_PIDS = ("unshare", "--pid", "--fork", "--kill-child")
ONE, OTHER = 64646, 64747  # uids that own nothing and have no names


@pytest.mark.usefixtures("root")
def test_users_that_are_not_the_daemons_borrow_and_page(place: Place) -> None:
    """Whoever may use the socket gets slabs that it can open; each is a tenant of its own."""
    with place.tenant() as one, place.tenant() as other:
        for tenant, uid in ((one, ONE), (other, OTHER)):
            tenant.ask("become", uid=uid)
            slab = tenant.ask("borrow", nbytes=place.slab_bytes)["number"]
            assert tenant.number("not_zero", number=slab) == 0
            tenant.ask("fill", number=slab, byte=0xA5)
            assert tenant.ask("page_everything") == {"wrong": [], "tiers": ["peer"]}
        tenants = [name for name in place.node.scrape() if name.startswith("aqua_tenant_")]
        assert any(str(ONE) in name for name in tenants), tenants
        assert any(str(OTHER) in name for name in tenants), tenants


def _may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*OWN_PIDS, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _may_unshare(), reason="not run here: no PID namespace can be made")
def test_a_tenant_in_a_pid_namespace_of_its_own_is_exact_or_told(place: Place) -> None:
    """Where CUDA lets it open a slab it pages to the peer; where not, to the host, with a reason."""
    with place.tenant(OWN_PIDS) as inside, place.tenant() as outside:
        said = inside.ask("page_everything")
        assert said["wrong"] == []
        assert said["tiers"] == ["peer"] or place.name.startswith("cuda")
        assert outside.ask("page_everything") == {"wrong": [], "tiers": ["peer"]}
    place.await_none_lent()
