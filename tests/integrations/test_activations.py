"""A backward over parked activations gives the gradients that it gives without."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import scaled_dot_product_attention

import aqua_client
from tests.integrations.hosting import host_client
from tests.nodes import MIB


@pytest.fixture
def client() -> Iterator[aqua_client.Client]:
    """On host memory."""
    with host_client() as made:
        yield made


class Layer(nn.Module):
    """What a transformer's does: views with gaps, transposes, one input of three products."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.together = nn.Linear(32, 96)
        self.alone = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.out = nn.Linear(32, 32).requires_grad_(requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(x)
        q, k, v = (one.transpose(1, 2) for one in self.together(hidden).chunk(3, -1))
        attended = scaled_dot_product_attention(q * k.exp(), k, v).transpose(1, 2)
        mixed = sum((layer(hidden) for layer in self.alone), attended)
        out: torch.Tensor = x + self.out(mixed.relu()) * mixed.expand_as(x).sigmoid()
        return out


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Layer(), Layer(), nn.Flatten(), nn.Linear(8 * 32, 4))


def inputs() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(6, 8, 32)


def test_training_is_bitwise_the_same(client: aqua_client.Client) -> None:
    """Some steps of Adam, everything that is not a parameter parked; nothing is left afterwards."""

    def trained(*, parks: bool) -> list[torch.Tensor]:
        module = model()
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        for _ in range(4):
            optimizer.zero_grad()
            if parks:
                with aqua_client.offload_activations(min_bytes=0, client=client) as saved:
                    loss = module(inputs()).square().mean()
                assert saved.offloaded_bytes > 6 * 8 * 32 * 4
                assert client.stats()["host_bytes"] != 0
            else:
                loss = module(inputs()).square().mean()
            loss.backward()
        return [one.detach() for one in module.parameters()]

    assert all(map(torch.equal, trained(parks=True), trained(parks=False)))
    assert client.stats()["host_bytes"] == 0
    assert client.stats()["fetches"] != 0


def test_strides_and_values_of_what_comes_back_are_those_that_were_saved(
    client: aqua_client.Client,
) -> None:
    """Expanded, transposed, with gaps, with an offset: each as the backward would have found it."""
    base = torch.randn(12, 10)
    gapped = base[::2, ::3]
    views = [base, base.t(), base[2:7], base[:, 3:5], gapped, gapped.t(), base[:1].expand(5, 10)]
    with torch.no_grad(), aqua_client.offload_activations(min_bytes=0, client=client) as saved:
        packed = [saved.pack(one) for one in views]
    elements = 120 + (4 + 50) + 24 + 24 + 24 + 10  # base and its transpose once; aligned
    assert saved.offloaded_bytes == 4 * elements
    for _ in range(2):
        for view, one in zip(views, packed, strict=True):
            again = one.unpack()
            assert (again.stride(), again.dtype) == (view.stride(), view.dtype)
            assert torch.equal(again, view)


def test_what_is_saved_several_times_is_stored_and_fetched_once(
    client: aqua_client.Client,
) -> None:
    """One input of three products."""
    x = torch.randn(64, 32, requires_grad=True).exp()
    layers = [nn.Linear(32, 16) for _ in range(3)]
    with aqua_client.offload_activations(min_bytes=1, client=client) as saved:
        outputs = [layer(x).sum() for layer in layers]
    assert saved.offloaded_bytes == x.nbytes
    sum(outputs[1:], outputs[0]).backward()
    assert (client.stats()["offloads"], client.stats()["fetches"]) == (1, 1)


def test_what_was_written_to_in_between_is_another_tensor(client: aqua_client.Client) -> None:
    """The same memory saved twice, with other values, is stored twice."""
    x = torch.ones(1000)
    weight = torch.ones(1000, requires_grad=True)
    with aqua_client.offload_activations(min_bytes=1, client=client):
        first = (weight * x).sum()
        x.add_(1)
        second = (weight * x).sum()
    x.zero_()
    (first + second).backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.full((1000,), 3.0))


def test_memory_that_is_used_again_is_not_taken_for_what_was_there(
    client: aqua_client.Client,
) -> None:
    """Storages that come and go at one address, all with version 0."""
    weight = torch.ones(5000, requires_grad=True)
    total = torch.zeros(())
    with aqua_client.offload_activations(min_bytes=1, client=client) as saved:
        for number in range(20):
            total = total + (weight * torch.full((5000,), float(number))).sum()
    assert saved.offloaded_bytes == 20 * 5000 * 4
    total.backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.full((5000,), 190.0))


def test_parameters_their_views_and_what_is_small_stay(client: aqua_client.Client) -> None:
    """Frozen ones, too: their owner holds them anyway."""
    frozen, trained = nn.Linear(64, 64).requires_grad_(requires_grad=False), nn.Linear(64, 64)
    x = torch.randn(2, 64)
    with aqua_client.offload_activations(min_bytes=4096, client=client) as saved:
        loss = (frozen(trained(x)) @ trained.weight.t()).sum()
    loss.backward()
    assert (saved.offloaded_bytes, client.stats()["offloads"]) == (0, 0)


def test_a_graph_that_is_kept_can_be_gone_through_again(client: aqua_client.Client) -> None:
    """The second backward fetches again."""
    module = model()
    with aqua_client.offload_activations(min_bytes=0, client=client):
        loss = module(inputs()).sum()
    loss.backward(retain_graph=True)
    once = [one.grad.clone() for one in module.parameters() if one.grad is not None]
    loss.backward()
    twice = [one.grad for one in module.parameters() if one.grad is not None]
    assert once
    assert all(torch.equal(a * 2, b) for a, b in zip(once, twice, strict=True))


def test_a_backward_can_be_differentiated(client: aqua_client.Client) -> None:
    """Gradients of gradients, all of it inside the block."""

    def curvature(*, parks: bool) -> torch.Tensor:
        x = inputs().double().requires_grad_()
        module = model().double()
        if not parks:
            return second(module, x)
        with aqua_client.offload_activations(min_bytes=0, client=client):
            return second(module, x)

    def second(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        (first,) = torch.autograd.grad(module(x).sin().sum(), x, create_graph=True)
        (found,) = torch.autograd.grad(first.square().sum(), x)
        return found

    assert torch.equal(curvature(parks=True), curvature(parks=False))


def test_without_a_backward_nothing_is_stored(client: aqua_client.Client) -> None:
    """Neither in a forward without gradients, nor when a graph is dropped."""
    module = model()
    with aqua_client.offload_activations(min_bytes=0, client=client) as saved:
        with torch.no_grad():
            module(inputs())
        assert saved.offloaded_bytes == 0
        loss = module(inputs()).sum()
        assert client.stats()["host_bytes"] != 0
        del loss
        gc.collect()
        assert client.stats()["host_bytes"] == 0


def test_what_has_no_room_stays_and_the_gradients_are_right() -> None:
    """It is counted, with the reason."""
    layers = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 1), nn.Tanh())
    x = torch.randn(4096, 64)
    layers(x).sum().backward()
    expected = [one.grad.clone() for one in layers.parameters() if one.grad is not None]
    layers.zero_grad()
    with host_client(host_limit_bytes=2 * MIB) as small:
        with aqua_client.offload_activations(min_bytes=1, client=small) as saved:
            loss = layers(x).sum()
        assert saved.kept_bytes >= 4 * MIB
        assert saved.offloaded_bytes >= MIB
        assert saved.reason
        loss.backward()
    assert expected
    grads = [one.grad for one in layers.parameters()]
    assert all(b is not None and torch.equal(a, b) for a, b in zip(expected, grads, strict=True))


@pytest.mark.parametrize("change", [lambda weight: weight.add_(1), lambda weight: weight.zero_()])
def test_a_tensor_that_stays_and_is_written_to_is_refused_as_ever(
    client: aqua_client.Client, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Torch does not look where there are hooks; a wrong gradient would be silent."""
    weight = nn.Parameter(torch.randn(4))
    with aqua_client.offload_activations(client=client):
        loss = (weight * weight.exp()).sum()
    with torch.no_grad():
        change(weight)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


def test_an_output_that_stays_does_not_keep_its_own_graph(client: aqua_client.Client) -> None:
    """The result of `exp` is what `exp` saves."""
    x = torch.randn(4, requires_grad=True)
    with aqua_client.offload_activations(client=client):
        y = x.exp()
    storage = StorageWeakRef(y.untyped_storage())
    gc.disable()
    try:
        del y
        assert storage.expired()
    finally:
        gc.enable()
