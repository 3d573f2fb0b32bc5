"""What only a CUDA device can show: streams under load, graphs, thousands of leases."""

from __future__ import annotations

import pytest

from tests.contract.places import Place

CUDA = [
    pytest.param(f"cuda-{handles}", marks=pytest.mark.gpu, id=f"cuda-{handles}")
    for handles in ("legacy", "vmm")
]
LEASES = 1000


@pytest.mark.limit(300)
@pytest.mark.parametrize("place", CUDA, indirect=True)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_copies_keep_the_order_of_streams(place: Place, seed: int) -> None:
    """With delays in front and poison right behind, every byte is what the stream's order says."""
    with place.tenant() as tenant:
        tenant.begin("ordering", rounds=400, seed=seed)
        assert tenant.answer(seconds=250) == {"wrong": []}


@pytest.mark.limit(200)
@pytest.mark.parametrize("place", CUDA, indirect=True)
def test_a_graph_capture_survives_the_librarys_thread(place: Place) -> None:
    """And an offload within a capture is refused, which the capture survives too."""
    with place.tenant() as tenant:
        tenant.begin("capturing", rounds=40)
        assert tenant.answer(seconds=150) == {"wrong": []}


@pytest.mark.limit(400)
@pytest.mark.parametrize("place", CUDA, indirect=True)
def test_no_bytes_of_the_last_tenant_over_a_thousand_leases(place: Place) -> None:
    """Two tenants take turns; neither ever finds a byte that it did not write."""
    with place.tenant() as one, place.tenant() as other:
        for tenant in (one, other):
            tenant.ask("cycles", count=1, nbytes=place.slab_bytes, byte=0xA5)
        place.await_none_lent()
        free = place.settled_free_bytes()
        for tenant, byte in ((one, 0xA5), (other, 0x5C)) * 4:
            tenant.begin("cycles", count=LEASES // 8, nbytes=place.slab_bytes, byte=byte)
            assert tenant.answer(seconds=90)["number"] == 0
        place.await_all_free(free)
