"""Models whose layers are of several kinds: full attention is streamed, all are parked."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any, cast

import pytest
import torch
from transformers import (
    DynamicCache,
    Lfm2Config,
    Lfm2ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from aqua_client.errors import LeaseLost
from aqua_client.integrations.kv_cache import AquaCache
from tests.client.pagers import two_gpus
from tests.integrations.kv_cache import models
from tests.integrations.kv_cache.stores import storing
from tests.nodes import wait_until

WINDOW = 16
KINDS = ("sliding_attention", "conv")


@cache
def model(kind: str) -> models.Llama:
    """Every other layer is of that kind."""
    config, made_of = _config(kind)
    with torch.inference_mode(mode=False), torch.no_grad():
        torch.manual_seed(0)
        made = made_of(config).train(mode=False)
    return cast("models.Llama", made)


def _config(kind: str) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    sizes: dict[str, Any] = {
        "vocab_size": models.VOCABULARY,
        "layer_types": [kind, "full_attention"] * 2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
    }
    if kind == "conv":
        return Lfm2Config(**sizes), Lfm2ForCausalLM
    windows: dict[str, Any] = {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 0,
    }
    return Qwen2Config(**sizes, **windows), Qwen2ForCausalLM


def turn(kind: str, kv_cache: DynamicCache, tokens: torch.Tensor) -> torch.Tensor:
    """Some more tokens."""
    answer = model(kind).generate(
        tokens, past_key_values=kv_cache, max_new_tokens=10, do_sample=False
    )
    return cast("torch.Tensor", answer)


@pytest.mark.parametrize("kind", KINDS)
def test_conversations_go_on_after_they_were_parked_whole(kind: str) -> None:
    """Nothing of any layer stays on the device; tokens are the stock cache's, also after a reset."""
    stock = DynamicCache(config=model(kind).config)
    with storing() as client:
        ours = AquaCache(model(kind).config, tail_tokens=4, client=client)
        expected = found = models.prompt(40, batch=2)
        for number in range(3):
            expected, found = turn(kind, stock, expected), turn(kind, ours, found)
            assert torch.equal(found, expected)
            resident = ours.resident_bytes
            ours.park()
            assert ours.resident_bytes == 0
            assert ours.get_seq_length() == expected.shape[1] - 1
            assert client.count("peer_bytes") == ours.stored_bytes
            if number:
                ours.resume()
                assert 0 < ours.resident_bytes <= resident + 2**14
            more = models.prompt(5, batch=2, seed=number)
            expected, found = (torch.cat([one, more], dim=1) for one in (expected, found))
        ours.park()
        ours.reset()
        assert client.count("peer_bytes") == 0
        first = turn(kind, DynamicCache(config=model(kind).config), models.prompt(40, batch=2))
        assert torch.equal(turn(kind, ours, models.prompt(40, batch=2)), first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_a_parked_cache_is_a_cache_of_its_own(kind: str) -> None:
    """It goes on with the same tokens, after the first one was reset."""
    with storing() as client:
        first = AquaCache(model(kind).config, tail_tokens=4, client=client)
        tokens = turn(kind, first, models.prompt(40))
        first.park()
        other = deepcopy(first)
        more = torch.cat([tokens, models.prompt(5, seed=1)], dim=1)
        expected = turn(kind, first, more)
        first.reset()
        assert torch.equal(turn(kind, other, more), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_of_any_layer_is_a_loss_of_the_conversation(kind: str) -> None:
    """It is said again each time, and a reset cache works on."""
    node = two_gpus()
    with storing(node) as client:
        ours = AquaCache(model(kind).config, tail_tokens=4, keep="cache", client=client)
        first = turn(kind, ours, models.prompt(40))
        ours.park()
        for gpu in ("SHM-1", "SHM-2"):
            node.revoke(gpu)
        wait_until(lambda: client.count("peer_bytes") == 0, what="all is dropped")
        for _ in range(2):
            with pytest.raises(LeaseLost, match="conversation"):
                turn(kind, ours, torch.cat([first, models.prompt(1)], dim=1))
        ours.reset()
        assert torch.equal(turn(kind, ours, models.prompt(40)), first)
