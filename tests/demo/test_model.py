"""The model: it repeats itself, and its answers depend on every part of its cache."""

from __future__ import annotations

import torch

from aqua_client.demo.model import KvCache, Model
from aqua_client.demo.plan import FULL
from aqua_client.demo.text import piece
from tests.demo.stores import TINY


def test_weights_follow_from_the_seed(model: Model) -> None:
    """Two models of one shape write the same."""
    again = Model(TINY.shape, threads=1)
    assert answer(again, KvCache(), [72, 105]) == answer(model, KvCache(), [72, 105])


def test_cache_size_is_what_the_plan_reckons_with(model: Model) -> None:
    """A key and a value of float32 in each layer, for each token."""
    cache = KvCache()
    model.read(cache, [1, 2, 3])
    assert cache.tokens == 3
    assert cache.nbytes == 3 * TINY.shape.kv_bytes_per_token
    assert cache.growth_bytes == cache.nbytes // (2 * TINY.shape.layers)


def test_a_cache_put_back_layer_by_layer_goes_on_alike(model: Model) -> None:
    """What is taken out of one cache makes another that answers the same."""
    kept, moved = KvCache(), KvCache()
    for cache in (kept, moved):
        model.read(cache, list(b"When in the Course of human events"))
    back = KvCache()
    while layer := moved.take_layer():
        back.add_layer(*layer)
    assert moved.nbytes == 0
    assert back.nbytes == kept.nbytes
    assert answer(model, back, [32]) == answer(model, kept, [32])


def test_taking_a_layer_out_makes_room_at_once(model: Model) -> None:
    """Layers leave one by one, the first one first."""
    cache = KvCache()
    model.read(cache, [1, 2])
    whole, first = cache.nbytes, cache.tensors()[0]
    layer = cache.take_layer()
    assert layer is not None
    assert torch.equal(layer[0], first)
    assert cache.nbytes == whole // 2


def test_answers_depend_on_the_cache() -> None:
    """In the full model a cache of zeros writes something else: equal answers prove something."""
    model = Model(FULL.shape, threads=1)
    read, blank = KvCache(), KvCache()
    model.read(read, piece(FULL, conversation=0, turn=0)[:64])
    for keys, values in zip(read.tensors()[::2], read.tensors()[1::2], strict=True):
        blank.add_layer(torch.zeros_like(keys), torch.zeros_like(values))
    assert answer(model, blank, [32]) != answer(model, read, [32])


def test_answers_are_no_repetition_of_one_token() -> None:
    """Weights are spread widely enough that the full model does not get stuck at once."""
    model = Model(FULL.shape, threads=1)
    cache = KvCache()
    model.read(cache, piece(FULL, conversation=3, turn=0)[:64])
    assert len(set(answer(model, cache, [32]))) > 4


def answer(model: Model, cache: KvCache, tokens: list[int]) -> list[int]:
    """Ten tokens that follow."""
    following = model.read(cache, tokens)
    reply = [following]
    for _ in range(9):
        following = model.read(cache, [following])
        reply.append(following)
    return reply
