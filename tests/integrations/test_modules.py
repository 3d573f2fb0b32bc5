"""A parked module is the same module: results, identity, ties, gradients; and one of its users."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import os
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import aqua_client
from aqua_client.integrations.modules import blocks as blocks_module
from aqua_client.integrations.modules.blocks import blocks_of
from tests.integrations.hosting import host_client
from tests.nodes import MIB


@pytest.fixture
def client() -> Iterator[aqua_client.Client]:
    """On host memory."""
    with host_client() as made:
        yield made


class Tied(nn.Module):
    """An embedding whose weight is the head's too, a view of it, and buffers."""

    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.body = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 16))
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight
        self.copy = nn.Parameter(self.embed.weight.data.t())  # of the same memory
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.body(self.embed(ids))
        out: torch.Tensor = self.head(hidden) + hidden @ self.copy
        return out * self.scale


def made(seed: int = 0) -> Tied:
    torch.manual_seed(seed)
    return Tied()


def is_empty(module: nn.Module) -> bool:
    return all(one.numel() == 0 for one in (*module.parameters(), *module.buffers()))


IDS = torch.arange(20)


def test_a_parked_module_answers_as_before(client: aqua_client.Client) -> None:
    """At its next forward it is back: the same parameters, tied as they were, bit by bit."""
    module = made().eval()
    expected = module(IDS)
    parameters = list(module.parameters())
    parked = aqua_client.park(module, client=client)
    assert is_empty(module)
    # The tied weight, which has three names, is stored once.
    assert parked.nbytes < 50 * 16 * 4 * 2 + 8192
    assert (parked.is_parked, parked.tier, parked.reason) == (True, "host", "no_daemon")
    assert torch.equal(module(IDS), expected)
    assert (parked.is_parked, parked.tier, parked.nbytes) == (False, "", 0)
    assert all(map(lambda a, b: a is b, module.parameters(), parameters))
    assert module.head.weight is module.embed.weight
    assert module.copy.data_ptr() == module.embed.weight.data_ptr()
    assert client.stats()["host_bytes"] == 0
    assert not module._forward_pre_hooks  # and costs nothing any more


def test_training_with_a_park_after_each_step_is_bitwise_the_same(
    client: aqua_client.Client,
) -> None:
    """Adam's state, gradients that are accumulated, batch statistics."""

    def trained(between: Callable[[nn.Module], object]) -> tuple[list[torch.Tensor], list[float]]:
        module, losses = made(), []
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        for step in range(6):
            loss = module(IDS + step).square().mean()
            loss.backward()
            between(module)  # the optimizer meets parked parameters, too
            if step % 2:
                optimizer.step()
                between(module)
                optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return [*module.state_dict().values()], losses

    (state, losses), (expected, their_losses) = (
        trained(lambda module: aqua_client.park(module, client=client)),
        trained(lambda _module: None),
    )
    assert losses == their_losses
    assert losses[0] != losses[-1]
    assert all(map(torch.equal, state, expected))


def test_gradients_stay_while_it_is_parked(client: aqua_client.Client) -> None:
    """They are not parked, and not lost."""
    module = made()
    module(IDS).sum().backward()
    gradient = module.head.weight.grad
    aqua_client.park(module, client=client)
    assert module.head.weight.grad is gradient
    aqua_client.unpark(module)
    assert gradient is not None
    assert gradient.shape == module.head.weight.shape


def test_between_a_forward_and_its_backward_it_must_be_back(client: aqua_client.Client) -> None:
    """Back in time, the gradients are the same; else the backward fails, and gives no wrong ones."""

    def gradients(between: Callable[[nn.Module], object]) -> list[torch.Tensor]:
        module = made()
        loss = module(IDS).square().sum()
        aqua_client.park(module, client=client)
        between(module)
        return list(torch.autograd.grad(loss, list(module.parameters())))

    module = made()
    loss = module(IDS).square().sum()
    expected = torch.autograd.grad(loss, list(module.parameters()))
    assert all(map(torch.equal, gradients(aqua_client.unpark), expected))
    with pytest.raises(RuntimeError, match="size"):
        gradients(lambda _module: None)


@pytest.mark.parametrize(
    "use",
    [
        lambda module: module.half(),
        lambda module: module.to(torch.float64),
        lambda module: module.state_dict(),
        lambda module: module.load_state_dict(made(seed=1).state_dict()),
        lambda module: module.body(torch.randn(4, 16)),
        lambda module: module.get_submodule("body.0")(torch.randn(4, 16)),
        lambda module: nn.Sequential(module).state_dict(),
        lambda module: nn.Sequential(module).double(),
        lambda module: torch.optim.SGD(module.parameters()).step(),
        aqua_client.unpark,
    ],
)
def test_whoever_uses_it_finds_it_whole(
    client: aqua_client.Client, use: Callable[[nn.Module], object]
) -> None:
    """What is done with a parked module has the effect that it has on one that never was."""
    module, other = made().eval(), made().eval()
    aqua_client.park(module, client=client)
    torch.manual_seed(7)
    use(module)
    torch.manual_seed(7)
    use(other)
    assert not is_empty(module)
    pairs = zip(module.state_dict().items(), other.state_dict().items(), strict=True)
    assert all(a == b and x.dtype == y.dtype and torch.equal(x, y) for (a, x), (b, y) in pairs)
    assert module.copy.data_ptr() == module.embed.weight.data_ptr() or use is not aqua_client.unpark


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: torch.save(module, io.BytesIO())])
def test_copying_a_parked_module_is_refused(
    client: aqua_client.Client, copied: Callable[[nn.Module], object]
) -> None:
    """Torch would take the empty tensors; unparked, it is as ever."""
    module = made()
    expected = module.head.weight.detach().clone()
    aqua_client.park(module, client=client)
    with pytest.raises(aqua_client.InvalidRequest, match="unpark"):
        copied(nn.Sequential(module))
    aqua_client.unpark(module)
    assert torch.equal(copy.deepcopy(module).head.weight, expected)


def test_an_immutable_module_is_copied_out_once(client: aqua_client.Client) -> None:
    """Until an optimizer, or anybody, writes to it: then what was written to is copied anew."""
    module = made().eval()
    expected = module(IDS)
    aqua_client.park(module, immutable=True, client=client)
    offloads = client.stats()["offloads"]
    for _ in range(3):
        assert torch.equal(module(IDS), expected)
        aqua_client.park(module, immutable=True, client=client)
        assert is_empty(module)
    assert client.stats()["offloads"] == offloads
    aqua_client.unpark(module)
    with torch.no_grad():
        module.get_parameter("body.0.bias").add_(1)
    written = module(IDS)
    aqua_client.park(module, immutable=True, client=client)
    assert torch.equal(module(IDS), written)
    assert not torch.equal(written, expected)


def test_inference_mode_leaves_no_mark(client: aqua_client.Client) -> None:
    """A module that was parked and resumed within it can still be trained."""
    module = made()
    with torch.inference_mode():
        aqua_client.park(module, client=client)
        module(IDS)
    module(IDS).sum().backward()
    assert module.head.weight.grad is not None


def test_parts_and_wholes_overlap(client: aqua_client.Client) -> None:
    """A part parked by itself, then with the whole, then the whole again, comes back once."""
    module = made().eval()
    expected = module(IDS)
    part = aqua_client.park(module.body, client=client)
    whole = aqua_client.park(module, client=client)
    again = aqua_client.park(module, client=client)
    assert whole.nbytes == again.nbytes > part.nbytes > 0
    aqua_client.unpark(module.embed)
    assert module.embed.weight.shape == (50, 16)
    assert [part.is_parked, whole.is_parked] == [True, True]
    assert torch.equal(module(IDS), expected)
    assert [part.is_parked, whole.is_parked] == [False, False]
    aqua_client.unpark(module)
    aqua_client.unpark(module)


def test_threads_that_meet_a_parked_module_all_find_it_whole(client: aqua_client.Client) -> None:
    """One resumes it, the others wait for that."""
    module = made().eval()
    expected = module(IDS)
    for _ in range(5):
        aqua_client.park(module, client=client)
        start = threading.Barrier(6)
        outputs: list[torch.Tensor] = []

        def forward(start: threading.Barrier = start, found: list[torch.Tensor] = outputs) -> None:
            start.wait()
            found.append(module(IDS))

        threads = [threading.Thread(target=forward) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(outputs) == 6
        assert all(torch.equal(one, expected) for one in outputs)


def test_a_module_that_has_no_room_is_as_it_was() -> None:
    """All of it is parked, or nothing."""
    module = nn.Sequential(nn.Linear(512, 512), nn.Linear(2048, 2048))
    expected = [one.detach().clone() for one in module.parameters()]
    with host_client(host_limit_bytes=4 * MIB) as small:
        with pytest.raises(aqua_client.InsufficientMemory):
            aqua_client.park(module, client=small)
        assert all(map(torch.equal, module.parameters(), expected))
        assert not module._forward_pre_hooks
        assert small.stats()["host_bytes"] == 0


def test_one_parameter_that_cant_be_parked_leaves_the_module_as_it_was(
    client: aqua_client.Client,
) -> None:
    """And is named."""
    module = made()
    module.register_buffer("odd", torch.randn(3, 3).to_sparse())
    with pytest.raises(aqua_client.UnsupportedTensor, match="odd"):
        aqua_client.park(module, client=client)
    assert not is_empty(module)
    assert client.stats()["host_bytes"] == 0


def test_a_module_that_is_dropped_gives_its_bytes_back(client: aqua_client.Client) -> None:
    """Nothing here keeps it."""
    module = made()
    parked = aqua_client.park(module, client=client)
    assert client.stats()["host_bytes"] != 0
    del module, parked
    gc.collect()
    assert client.stats()["host_bytes"] == 0


def test_a_compiled_module_resumes(client: aqua_client.Client) -> None:
    """The wrapper is hooked, so the compiled code finds its parameters."""
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    compiled = torch.compile(module, backend="eager")
    x = torch.randn(2, 4)
    expected = compiled(x)
    aqua_client.park(compiled, client=client)  # type: ignore[arg-type]  # torch: a module, or a function
    assert is_empty(module)
    assert torch.equal(compiled(x), expected)


def test_a_forked_child_is_told_so_and_does_not_wait(client: aqua_client.Client) -> None:
    """Whatever lock another thread had as it forked."""
    module = made()
    aqua_client.park(module, client=client)
    block = blocks_of(module.parameters())[0]
    with block._lock, blocks_module._turn:
        child = os.fork()
        if child == 0:
            outcome = 1
            with contextlib.suppress(BaseException):
                try:
                    module(IDS)
                except aqua_client.ForkedChild:
                    outcome = 0
            os._exit(outcome)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_part_is_parked_without_what_lies_beside_it(client: aqua_client.Client) -> None:
    """Two layers in one storage, stored in one piece; then one of them by itself."""
    module = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    flat = torch.randn(128)
    expected = flat.clone()
    for number, parameter in enumerate(module.parameters()):
        parameter.data = flat[64 * number :][:64].view(8, 8)
    aqua_client.park(module, immutable=True, client=client)
    assert client.stats()["offloads"] == 1
    aqua_client.unpark(module)
    aqua_client.park(module[0], immutable=True, client=client)
    assert [one.numel() for one in module.parameters()] == [0, 64]
    module(torch.randn(2, 8))
    assert torch.equal(torch.cat([one.flatten() for one in module.parameters()]), expected)


def test_hooks_of_the_modules_own_find_it_whole_and_ours_do_not_pile_up(
    client: aqua_client.Client,
) -> None:
    """Ours comes first, once, however often it was parked."""
    module = nn.Linear(8, 8)
    sizes: list[int] = []
    module.register_forward_pre_hook(lambda one, _args: sizes.append(one.weight.numel()))
    for _ in range(3):
        aqua_client.park(module, client=client)
    assert len(module._forward_pre_hooks) == 2
    module(torch.randn(1, 8))
    assert sizes == [64]
    assert len(module._forward_pre_hooks) == 1
