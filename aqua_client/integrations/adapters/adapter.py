"""One adapter: what it is made of in peft's layers, and taking all of that out and putting it back.

A parked adapter is not in the model at all, not even empty: peft goes over every adapter of every
layer whenever one is added or set, and a use of it by name, not through the pool, is refused by
peft instead of answered by the base model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from aqua_client.integrations.modules.blocks import Block, OffloadMany, park_all, resume_all
from aqua_client.integrations.modules.spans import ALIGNMENT


class _Part(NamedTuple):
    """What one table of a layer has of it: a module, a parameter, or a plain value."""

    table: Any  # a ModuleDict, a ParameterDict or a dict, by adapter
    label: str
    value: Any


class Adapter:
    """An adapter of a model. Not for several threads at once."""

    def __init__(self, model: PeftModel, name: str) -> None:
        """It is in *model*. From here on it is frozen, and lies in one piece."""
        self.name = name
        self.is_here = True
        self._configs: dict[str, Any] = model.peft_config
        self._config = self._configs[name]
        self._parts = list(_parts(model, name))
        self._blocks: list[Block] = []
        self.freeze()
        _lay_together([tensor for _, tensor in self._tensors()])

    def freeze(self) -> None:
        """Let it need no gradients."""
        for _, tensor in self._tensors():
            tensor.requires_grad = False

    def park(self, offload_many: OffloadMany) -> None:
        """Take it out of the model. It is copied the first time, and when it has been written to.

        Raises:
            InsufficientMemory, BrokerUnreachable, ForkedChild: as `offload`; it stays.
        """
        self._blocks = park_all(self._tensors(), offload_many, immutable=True)
        self.is_here = False
        self._configs.pop(self.name, None)
        for part in self._parts:
            del part.table[self.name]

    def bring(self) -> None:
        """Put it back into the model.

        Raises:
            LeaseLost, HandleReleased, ForkedChild: as `fetch`; it stays out.
        """
        resume_all(self._blocks)
        for part in self._parts:
            part.table[self.name] = part.value
        self._configs[self.name] = self._config
        self.is_here = True

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for _, label, value in self._parts:
            prefix = f"adapter {self.name}, {label}"
            if isinstance(value, torch.nn.Module):
                yield from value.named_parameters(prefix)
                yield from value.named_buffers(prefix)
            elif isinstance(value, torch.Tensor):
                yield prefix, value


def layers_of(model: PeftModel) -> list[Any]:
    """Those that have adapters."""
    return [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]


def _parts(model: PeftModel, name: str) -> Iterator[_Part]:
    for path, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            for attribute in (*layer.adapter_layer_names, *layer.other_param_names):
                table: Any = getattr(layer, attribute, None)
                if hasattr(table, "keys") and name in table:
                    yield _Part(table, f"{path}.{attribute}", table[name])


def _lay_together(tensors: Iterable[torch.Tensor]) -> None:
    """Let those of one device lie beside each other in one storage: one copy moves them all."""
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors:
        if tensor.is_contiguous() and not tensor.is_meta:
            by_device.setdefault(tensor.device, []).append(tensor)
    for device, group in by_device.items():
        ends = [0]
        for tensor in group:
            ends.append(ends[-1] + -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT)
        storage = torch.empty(ends.pop(), dtype=torch.uint8, device=device).untyped_storage()
        for tensor, start in zip(group, ends, strict=True):
            empty = torch.empty(0, dtype=tensor.dtype, device=device)
            place = empty.set_(storage, start // tensor.itemsize, tensor.shape, tensor.stride())
            tensor.data = place.copy_(tensor.detach())
