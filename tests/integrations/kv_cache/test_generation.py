"""What is generated over the cache is what the stock cache gives, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import pytest
import torch
from transformers import DynamicCache

from aqua_client.integrations.kv_cache import AquaCache
from tests.integrations.kv_cache import models
from tests.integrations.kv_cache.stores import storing

# Between the two best: rounding, where another kernel is chosen, is a ten-thousandth of it.
APART = 0.01

WAYS: Mapping[str, Mapping[str, object]] = {
    "greedy": models.GREEDY,
    "sampling": {"do_sample": True, "temperature": 1.5},
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 2, "num_return_sequences": 2, "do_sample": True},
    "assisted": {"assistant_model": models.model(layers=1), "do_sample": False},
    "prompt lookup": {"prompt_lookup_num_tokens": 4, "do_sample": False},
    "chunked prefill": {"prefill_chunk_size": 16, "do_sample": False},
}
# Layers that may be resident, and tokens that stay; other shapes for greedy search alone.
SHAPES: list[tuple[str, int | None, int]] = [("greedy", 3, 8), ("greedy", None, 1)]
SHAPES += [(way, limit, tail) for way in WAYS for limit, tail in ((1, 3), (2, 4))]


@pytest.mark.parametrize(("way", "limit", "tail"), SHAPES)
def test_outputs_are_the_stock_caches(way: str, limit: int | None, tail: int) -> None:
    """Tokens, logits and at the end all keys and values, whatever may be resident."""
    tokens = models.prompt(50, batch=1 if way in {"assisted", "prompt lookup"} else 2)
    stock = DynamicCache()
    expected, logits = models.generate(stock, tokens, WAYS[way])
    with storing() as client:
        ours = AquaCache(resident_layers=limit, tail_tokens=tail, client=client)
        found, our_logits = models.generate(ours, tokens, WAYS[way])
        assert torch.equal(found, expected)
        assert torch.equal(our_logits, logits)
        assert models.are_alike(ours, stock)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_layers_told_by_the_models_config_are_streamed_alike(attention: str) -> None:
    """With a config they are there from the start, and outputs are the same."""
    config = models.model(attention=attention).config
    tokens = models.prompt(40, batch=2)
    expected, _ = models.generate(DynamicCache(), tokens, attention=attention)
    with storing() as client:
        cache = AquaCache(config, tail_tokens=4, client=client)
        assert len(cache.layers) == models.LAYERS
        found, _ = models.generate(cache, tokens, attention=attention)
        assert torch.equal(found, expected)
        assert cache.stored_bytes > 0


def test_the_seeds_two_best_tokens_stay_apart() -> None:
    """At each step, so that equal tokens are no luck of rounding; and they are not all the same."""
    sequences, logits = models.generate(DynamicCache(), models.prompt(50))
    best = logits.topk(2, dim=-1).values
    assert float((best[..., 0] - best[..., 1]).min()) > APART
    assert len(set(sequences[0, 50:].tolist())) > 5


@pytest.mark.parametrize("left", [0, 1, 20, 57, 58, 69, 70])
@pytest.mark.parametrize("parked", [False, True])
def test_a_cropped_cache_goes_on_as_a_cropped_stock_one(left: int, *, parked: bool) -> None:
    """Inside the tail, at and inside what is stored, to nothing: the next passes are the same."""
    tokens = models.prompt(70, batch=2)
    stock = DynamicCache()
    with storing() as client:
        ours = AquaCache(tail_tokens=6, client=client)
        for cache in (stock, ours):
            models.read(cache, tokens[:, :58])
            models.read(cache, tokens[:, 58:])
        if parked:
            ours.park()
        for cache in (stock, ours):
            cache.crop(left - 70)
        assert ours.get_seq_length() == stock.get_seq_length() == left
        for part in (models.prompt(9, batch=2, seed=1), models.prompt(1, batch=2, seed=2)):
            assert torch.equal(models.read(ours, part), models.read(stock, part))
        assert models.are_alike(ours, stock)


def test_copies_of_a_cache_go_on_by_themselves() -> None:
    """One prompt that was read once, and two answers that know nothing of each other."""
    with storing() as client:
        read = AquaCache(tail_tokens=4, client=client)
        models.read(read, models.prompt(40))
        for seed in (1, 2):
            ours, stock = deepcopy(read), DynamicCache()
            models.read(stock, models.prompt(40))
            more = torch.cat([models.prompt(40), models.prompt(5, seed=seed)], dim=1)
            expected, _ = models.generate(stock, more)
            found, _ = models.generate(ours, more)
            assert torch.equal(found, expected)
            assert models.are_alike(ours, stock)
        assert read.get_seq_length() == 40


def test_a_reset_cache_is_a_new_one() -> None:
    """It takes another batch, and holds nothing."""
    with storing() as client:
        cache = AquaCache(tail_tokens=2, client=client)
        models.read(cache, models.prompt(40, batch=2))
        cache.reset()
        assert (cache.get_seq_length(), cache.resident_bytes, cache.stored_bytes) == (0, 0, 0)
        expected = models.read(DynamicCache(), models.prompt(9, seed=3))
        assert torch.equal(models.read(cache, models.prompt(9, seed=3)), expected)


def test_rows_of_the_batch_are_repeated_and_selected_as_in_a_stock_cache() -> None:
    """What was stored of the former rows is not used any more."""
    stock = DynamicCache()
    with storing() as client:
        ours = AquaCache(tail_tokens=4, client=client)
        for cache in (stock, ours):
            models.read(cache, models.prompt(30, batch=2))
            cache.batch_repeat_interleave(2)
            models.read(cache, models.prompt(10, batch=4, seed=1))
            cache.batch_select_indices(torch.tensor([3, 0, 0]))
        last = models.prompt(2, batch=3, seed=2)
        assert torch.equal(models.read(ours, last), models.read(stock, last))
        assert models.are_alike(ours, stock)
