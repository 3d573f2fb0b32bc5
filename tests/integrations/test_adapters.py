"""A pool answers with each adapter as the model does that has them all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import aqua_client
from aqua_client.integrations.adapters import AdapterPool
from tests.integrations.adapters_of_a_model import X, answers, base, config, model_with, seed
from tests.integrations.hosting import host_client

NAMES = [f"adapter-{number}" for number in range(8)]


@pytest.fixture
def client() -> Iterator[aqua_client.Client]:
    """On host memory."""
    with host_client() as made:
        yield made


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    """What the model answers that has all adapters."""
    found = answers(model_with(*NAMES), NAMES)
    assert len({one.sum().item() for one in found.values()}) == len(NAMES)
    return found


def adapters_in(model: peft.PeftModel) -> set[str]:
    layer: Any = model.get_submodule("base_model.model.0")
    return set(layer.lora_A)


def test_each_adapter_answers_as_without_a_pool(
    client: aqua_client.Client, expected: dict[str, torch.Tensor]
) -> None:
    """Whether it stayed or came back, in any order; not more are in the model than may be."""
    model = model_with(*NAMES)
    pool = AdapterPool(model, resident=3, client=client)
    assert pool.active == NAMES[0]
    assert torch.equal(model(X), expected[NAMES[0]])
    for name in [*NAMES, *reversed(NAMES), *NAMES[::3], *NAMES[1::2]]:
        pool.activate(name)
        assert torch.equal(model(X), expected[name])
        assert pool.active == pool.resident[-1] == name
        assert adapters_in(model) == set(pool.resident) == set(model.peft_config)
        assert len(pool.resident) == 3
    assert pool.names == NAMES


def test_an_adapter_is_copied_out_once(client: aqua_client.Client) -> None:
    """And in one piece; what is used most stays."""
    pool = AdapterPool(model_with(*NAMES), resident=2, client=client)
    for _ in range(3):
        for name in NAMES:
            pool.activate(name)
            pool.activate(NAMES[0])
    assert client.stats()["offloads"] == len(NAMES) - 1  # the one that is used most stayed
    figures = pool.stats()
    assert figures["fetched"] == client.stats()["fetches"] == 3 * (len(NAMES) - 1)
    assert figures["activations"] == 6 * len(NAMES)
    assert (figures["adapters"], figures["resident"], figures["kept"]) == (len(NAMES), 2, 0)


def test_adapters_are_added_and_removed(
    client: aqua_client.Client, expected: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """New ones and saved ones, though all but one are parked."""
    model_with(NAMES[2]).save_pretrained(str(tmp_path))
    model = model_with(NAMES[0])
    pool = AdapterPool(model, resident=1, client=client)
    assert not any(one.requires_grad for one in model.parameters())  # it is for serving
    pool.add(NAMES[1], config())
    seed(model, NAMES[1])
    pool.add(NAMES[2], tmp_path / NAMES[2])
    pool.add(NAMES[3], config())
    seed(model, NAMES[3])
    assert (pool.active, pool.resident) == (NAMES[0], [NAMES[0], NAMES[3]])
    assert torch.equal(model(X), expected[NAMES[0]])
    for name in NAMES[:4]:
        pool.activate(name)
        assert torch.equal(model(X), expected[name])
        assert not any(one.requires_grad for one in model.parameters())
    with pytest.raises(aqua_client.InvalidRequest, match="already"):
        pool.add(NAMES[1], config())
    with pytest.raises(aqua_client.InvalidRequest, match="active"):
        pool.remove(NAMES[3])
    for name in NAMES[:3]:
        pool.remove(name)
    assert pool.names == [NAMES[3]]
    assert client.stats()["host_bytes"] == (4 * 32 + 64 * 4) * 2 * 4  # the copy of one is kept
    with pytest.raises(aqua_client.InvalidRequest, match="no adapter"):
        pool.activate(NAMES[0])
    pool.add(NAMES[0], config())
    pool.activate(NAMES[0])
    assert not torch.equal(model(X), expected[NAMES[0]])  # it is another one of that name


def test_one_that_was_written_to_is_copied_anew(client: aqua_client.Client) -> None:
    """Its weights were loaded after it was parked once."""
    model = model_with(*NAMES[:2])
    pool = AdapterPool(model, resident=1, client=client)
    pool.activate(NAMES[1])
    pool.activate(NAMES[0])
    with torch.no_grad():
        for path, tensor in model.named_parameters():
            if NAMES[0] in path:
                tensor.add_(1)
    written = model(X)
    pool.activate(NAMES[1])
    pool.activate(NAMES[0])
    assert torch.equal(model(X), written)


def test_a_parked_adapter_is_refused_by_peft_itself(client: aqua_client.Client) -> None:
    """Not answered by the base model, silently."""
    model = model_with(*NAMES[:3])
    AdapterPool(model, resident=1, client=client)
    with pytest.raises(ValueError, match="not found"):
        model.set_adapter(NAMES[1])


def test_threads_that_take_turns_each_have_their_adapter(
    client: aqua_client.Client, expected: dict[str, torch.Tensor]
) -> None:
    """However they meet."""
    pool = AdapterPool(model_with(*NAMES), resident=2, client=client)
    wrong: list[str] = []

    def serve(first: int) -> None:
        for number in range(12):
            name = NAMES[(first + number * 3) % len(NAMES)]
            with pool.using(name) as model, torch.no_grad():
                if not torch.equal(model(X), expected[name]):
                    wrong.append(name)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert pool.stats()["activations"] == 48


def test_without_room_adapters_stay_and_answer(expected: dict[str, torch.Tensor]) -> None:
    """More than were wanted; counted, and parked when there is room."""
    with host_client(host_limit_bytes=1024) as small:
        model = model_with(*NAMES[:4])
        pool = AdapterPool(model, resident=1, client=small)
        assert len(pool.resident) == 4
        for name in NAMES[:4]:
            pool.activate(name)
            assert torch.equal(model(X), expected[name])
        assert pool.stats()["kept"] == 4


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (
            lambda: peft.get_peft_model(
                base(), config(modules_to_save=["2"], target_modules=["0"])
            ),
            "modules_to_save",
        ),
        (lambda: peft.get_peft_model(base(), peft.LoHaConfig(target_modules=["0"])), "LOHA"),
    ],
)
def test_what_cant_be_parked_is_refused(client: aqua_client.Client, made: object, why: str) -> None:
    """When the pool is made, and nothing has changed."""
    assert callable(made)
    with pytest.raises(aqua_client.InvalidRequest, match=why):
        AdapterPool(made(), client=client)


def test_a_merged_adapter_bars_others(client: aqua_client.Client) -> None:
    """Its weights are in the base model's."""
    model = model_with(*NAMES[:2])
    pool = AdapterPool(model, client=client)
    model.merge_adapter()
    with pytest.raises(aqua_client.InvalidRequest, match="merged"):
        pool.activate(NAMES[1])
    model.unmerge_adapter()
    pool.activate(NAMES[1])


def test_a_room_for_none_is_refused(client: aqua_client.Client) -> None:
    """The active one is always there."""
    with pytest.raises(aqua_client.InvalidRequest, match="resident=0"):
        AdapterPool(model_with(NAMES[0]), resident=0, client=client)


def test_other_layers_that_an_adapter_brings_are_switched_too(
    client: aqua_client.Client,
) -> None:
    """Two adapters of different layers."""
    model = peft.get_peft_model(base(), config(target_modules=["0"]), "one")
    both = AdapterPool(model, resident=1, client=client)
    both.add("other", config(target_modules=["2"]))
    alone: dict[str, torch.Tensor] = {}
    for name in ("one", "other", "one", "other"):
        both.activate(name)
        assert torch.equal(model(X), alone.setdefault(name, model(X)))
    with model.disable_adapter():
        plain = model(X)
    assert not torch.equal(alone["one"], plain)
    assert not torch.equal(alone["other"], plain)
    assert isinstance(model.get_submodule("base_model.model.1"), nn.ReLU)
