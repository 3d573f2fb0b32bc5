"""What is parked on a real node through these integrations is whole after revokes, or said to be lost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import aqua_client
from aqua_client.integrations.adapters import AdapterPool
from tests.integrations.adapters_of_a_model import X, answers, model_with
from tests.nodes import MIB, running_node, wait_until


def lenders(client: aqua_client.Client) -> set[str]:
    found = client.stats()["leases"]
    assert isinstance(found, dict)
    return set(found)


@pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning")  # once the keeper is dead
def test_a_module_is_the_same_after_its_leases_were_taken_back() -> None:
    """Parked on peers, moved when an owner grows, resumed by the next forward; then its keeper dies."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(8)))
    x = torch.randn(2, 512)
    expected = model(x)
    with (
        running_node(gpus=3, gpu_bytes=64 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        parked = aqua_client.park(model)
        assert parked.tier == "peer"
        node.load("SHM-1", 60 * MIB)
        wait_until(lambda: "SHM-1" not in lenders(client), what="it is given back")
        assert torch.equal(model(x), expected)
        assert client.stats()["evacuated_bytes"]

        other = nn.Linear(512, 512)
        answer = other(x)
        aqua_client.park(other, immutable=True)
        other(x)  # here again, with its copy on a peer
        parked = aqua_client.park(model)
        assert parked.tier == "peer"
        node.kill_keeper()
        wait_until(lambda: parked.tier == "lost", what="the loss is known")
        with pytest.raises(aqua_client.LeaseLost, match=r"0\.weight.*7\.bias.*anew"):
            model(x)
        assert parked.is_parked
        again = aqua_client.park(other, immutable=True)  # its copy is gone: another one is made
        assert again.tier in {"peer", "host"}
        assert torch.equal(other(x), answer)


def test_a_backward_is_the_same_after_leases_were_taken_back() -> None:
    """Activations on peers; an owner grows between the forward and the backward."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(256, 256), nn.Tanh()) for _ in range(6)))
    x = torch.randn(1024, 256)

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters())))

    expected = gradients(model(x).square().sum())
    with (
        running_node(gpus=3, gpu_bytes=64 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        with aqua_client.offload_activations() as saved:
            loss = model(x).square().sum()
        assert saved.offloaded_bytes >= 7 * MIB
        assert lenders(client)
        node.load("SHM-1", 60 * MIB)
        wait_until(lambda: "SHM-1" not in lenders(client), what="it is given back")
        assert all(map(torch.equal, gradients(loss), expected))
        assert client.stats()["peer_in_bytes"]
        assert (client.stats()["peer_bytes"], client.stats()["host_bytes"]) == (0, 0)


def test_adapters_are_the_same_after_leases_were_taken_back() -> None:
    """Parked on peers, moved when an owner grows; those whose keeper died are lost by name."""
    names = ["one", "two", "three", "four"]
    expected = answers(model_with(*names), names)
    with (
        running_node(gpus=3, gpu_bytes=64 * MIB) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        model = model_with(*names)
        pool = AdapterPool(model, resident=1)
        for name in names:
            pool.activate(name)
        (lender,) = lenders(client)
        node.load(lender, 60 * MIB)
        wait_until(lambda: lender not in lenders(client), what="it is given back")
        for name in names:
            pool.activate(name)
            assert torch.equal(model(X), expected[name])
        assert (client.stats()["offloads"], client.stats()["host_out_bytes"]) == (len(names), 0)

        node.kill_keeper()
        wait_until(lambda: not lenders(client), what="the loss is known")
        with pytest.raises(aqua_client.LeaseLost, match=r"adapter one, .*lora_A"):
            pool.activate("one")
        assert torch.equal(model(X), expected["four"])
        pool.remove("one")
