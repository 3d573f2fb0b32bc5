"""Park a module's parameters and buffers, all at once; it resumes by itself when it is used.

    model = torch.nn.Linear(1024, 1024)
    parked = aqua_client.park(model)
    print(parked.tier, parked.nbytes)  # its own memory is free
    model(torch.randn(1, 1024))  # the same as ever

Parameters keep their identity, their gradients and what an optimizer knows of them; tied ones are
stored once and are tied again. `blocks` says how, `waking` when a module resumes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import torch

from aqua_client import client as own
from aqua_client.integrations.modules.blocks import Block, blocks_of, park_all, resume_all
from aqua_client.integrations.modules.waking import Waker


class ParkedModule:
    """What of a module is parked, and where."""

    def __init__(self, blocks: list[Block]) -> None:
        """Made by `park`."""
        self._blocks = blocks

    @property
    def is_parked(self) -> bool:
        """Whether any of it is."""
        return any(block.is_parked for block in self._blocks)

    @property
    def nbytes(self) -> int:
        """Bytes that are parked now."""
        return sum(block.handle.nbytes for block in self._parked() if block.handle)

    @property
    def tier(self) -> str:
        """Where they are: `peer`, `host` or `mixed`, `lost` if any are; empty when none are."""
        tiers = {block.handle.tier for block in self._parked() if block.handle}
        if "lost" in tiers:
            return "lost"
        return tiers.pop() if len(tiers) == 1 else "mixed" if tiers else ""

    @property
    def reason(self) -> str:
        """Why some of it is not in leased memory, or lost; else empty."""
        reasons = (block.handle.reason for block in self._parked() if block.handle)
        return next((reason for reason in reasons if reason), "")

    def _parked(self) -> Iterator[Block]:
        return (block for block in self._blocks if block.is_parked)

    def __repr__(self) -> str:
        return f"<ParkedModule {self.nbytes} bytes, {self.tier or 'resumed'}>"


def park(
    module: torch.nn.Module, *, immutable: bool = False, client: own.Client | None = None
) -> ParkedModule:
    """Park all parameters and buffers of *module*; all of them, or an error is raised and none is.

    It resumes at its next forward, at `state_dict`, `load_state_dict`, `to`, an optimizer's step, or
    `unpark`. Until then its parameters have no elements. Not between a forward and its backward,
    which would find them so. Parked again, it stays as it is.

    *immutable*: nobody writes to them, but by operations that torch counts (an optimizer's, `copy_`,
    not those on `.data`). The copy is kept then: parking it again costs nothing.
    *client*: whose memory; the process's own, unless given.

    Memory that something else shares (a view kept elsewhere) is not free, and is no longer shared
    afterwards. Weights tied between two modules: park one that holds both.

        parked = aqua_client.park(model)
        aqua_client.unpark(model)

    Raises:
        UnsupportedTensor: a parameter, which is named, has no dense bytes of its own.
        InsufficientMemory: nowhere is room; the module is as it was.
        BrokerUnreachable: there is no leased memory, and `fallback="error"`.
        ForkedChild: connect anew in this process.
    """
    offload_many = own.offload_many if client is None else client.offload_many
    blocks = park_all(_tensors(module), offload_many, immutable=immutable)
    waker = Waker(module, blocks)
    before = _wakers.pop(module, None)
    if before is not None:
        before.remove()
    _wakers[module] = waker
    return ParkedModule(blocks)


def unpark(module: torch.nn.Module) -> None:
    """Resume *module* now, what of it is parked. No effect on one that is not.

    Raises:
        LeaseLost: the bytes of some parameters, which it names, are gone. The rest is back.
        HandleReleased: the client that parked it closed.
        ForkedChild: it was parked before the fork.
    """
    resume_all(blocks_of(tensor for _, tensor in _tensors(module)))
    waker = _wakers.pop(module, None)
    if waker is not None:
        waker.remove()


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Each once, however many names it has."""
    yield from module.named_parameters()
    yield from module.named_buffers()


_wakers: weakref.WeakKeyDictionary[torch.nn.Module, Waker] = weakref.WeakKeyDictionary()
