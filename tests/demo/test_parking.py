"""Parking: what goes comes back, is counted by tier, and a changed byte is seen."""

from __future__ import annotations

import torch

from aqua_client.demo.model import KvCache, Model
from aqua_client.demo.parking import Parking, digest
from tests.demo.stores import CopyStore, FlippingStore


def filled(model: Model) -> KvCache:
    cache = KvCache()
    model.read(cache, list(b"Four score and seven years ago"))
    return cache


def test_parking_empties_the_cache_and_fetching_fills_another(model: Model) -> None:
    """Every tensor comes back with its bytes, in its place."""
    cache = filled(model)
    before = [tensor.clone() for tensor in cache.tensors()]
    parking = Parking(CopyStore())
    parked, _ = parking.park(cache)
    assert cache.nbytes == 0
    back, _ = parking.fetch(parked)
    assert all(torch.equal(one, two) for one, two in zip(before, back.tensors(), strict=True))
    assert parking.tensors_compared == len(before)
    assert parking.tensors_differing == 0


def test_bytes_are_counted_by_tier(model: Model) -> None:
    """Of each way, by where the bytes went and came from."""
    cache = filled(model)
    nbytes = cache.nbytes
    store = CopyStore(tier="host")
    parking = Parking(store)
    parked, went = parking.park(cache)
    for copy in store.copies:
        copy.tier = "peer"  # moved meanwhile
    _, came = parking.fetch(parked)
    assert went == {"host": nbytes}
    assert came == {"peer": nbytes}
    assert parking.parked_bytes == {"host": nbytes}
    assert parking.fetched_bytes == {"peer": nbytes}
    assert parked.nbytes == nbytes


def test_a_fetched_tensor_gives_its_place_back(model: Model) -> None:
    """Nothing stays in the store when its conversation is resident again."""
    store = CopyStore()
    parking = Parking(store)
    parked, _ = parking.park(filled(model))
    parking.fetch(parked)
    assert all(copy._tensor is None for copy in store.copies)


def test_one_flipped_bit_is_seen(model: Model) -> None:
    """A tensor that differs in one bit of one byte is counted as differing."""
    parking = Parking(FlippingStore())
    parked, _ = parking.park(filled(model))
    parking.fetch(parked)
    assert parking.tensors_differing == 1


def test_digest_tells_shapes_and_types_apart() -> None:
    """The same bytes under another shape or type are no equal tensor."""
    zeros = torch.zeros(2, 3)
    same = [zeros, zeros.clone()]
    other = [zeros.reshape(3, 2), zeros.to(torch.int32), torch.zeros(6)]
    assert len({digest(tensor) for tensor in same}) == 1
    assert len({digest(tensor) for tensor in (*same, *other)}) == 4


def test_digest_reads_what_a_view_shows() -> None:
    """The bytes of a non-contiguous tensor are those of its elements in order."""
    whole = torch.arange(6.0).reshape(2, 3)
    assert digest(whole.t()) == digest(whole.t().contiguous())
