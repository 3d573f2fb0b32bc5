"""What makes a parked module resume by itself, whatever is done with it.

A forward of the module, or of any part that has tensors of its own; `state_dict` and
`load_state_dict`; `to`, `half`, `cuda` and whatever else goes over its tensors (`_apply`); and an
optimizer's step. Copying or pickling it is refused, for torch would take the empty tensors. Reading
a parameter by hand is not seen: it has no elements.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from aqua_client.errors import InvalidRequest
from aqua_client.integrations.modules.blocks import Block, blocks_of, resume_all


class Waker:
    """The hooks of one parked module: all its blocks come back at the first that is called."""

    def __init__(self, module: torch.nn.Module, blocks: Sequence[Block]) -> None:
        """Hook *module*, and each part of it that has tensors of its own."""
        _watch_optimizers()
        self.blocks = tuple(blocks)
        self._lock = threading.Lock()
        self._hooks: list[RemovableHandle] = []
        self._hooked: list[weakref.ref[torch.nn.Module]] = []
        for part in module.modules():
            if part is module or _has_tensors(part):
                self._hook(part)

    def resume(self) -> None:
        """Resume, and hook nothing any more.

        Raises:
            LeaseLost: the bytes of some parameters, which it names, are gone. The rest is back.
        """
        resume_all(self.blocks)
        self.remove()

    def remove(self) -> None:
        """Hook nothing any more. Idempotent."""
        with self._lock:
            hooks, self._hooks = self._hooks, []
            hooked, self._hooked = self._hooked, []
        for hook in hooks:
            hook.remove()
        for reference in hooked:
            part = reference()
            applied = None if part is None else vars(part).get("_apply")
            if isinstance(applied, _Applying) and applied.waker is self:
                vars(part).pop("_apply", None)

    def _hook(self, part: torch.nn.Module) -> None:
        self._hooks += [
            part.register_forward_pre_hook(_Forward(self), prepend=True),
            part.register_state_dict_pre_hook(_Dict(self)),
            part.register_load_state_dict_pre_hook(_Dict(self)),
        ]
        self._hooked.append(weakref.ref(part))
        # There is no hook for this one: what is found on the instance goes before the class's.
        vars(part)["_apply"] = _Applying(self, part)


class _Hook:
    """Something of ours in a module, which torch calls, copies and pickles as its own."""

    def __init__(self, waker: Waker) -> None:
        self.waker = waker

    def __deepcopy__(self, memo: dict[int, object]) -> NoReturn:
        self.__reduce__()

    def __reduce__(self) -> NoReturn:
        raise InvalidRequest(
            "a parked module can't be copied or pickled: its parameters are empty; "
            "aqua_client.unpark(module) first"
        )


class _Forward(_Hook):
    def __call__(self, *_called_with: object) -> None:
        self.waker.resume()


class _Dict(_Hook):
    def __call__(self, *_called_with: object) -> None:
        resume_all(self.waker.blocks)  # the hooks stay: torch is going over them


class _Applying(_Hook):
    def __init__(self, waker: Waker, part: torch.nn.Module) -> None:
        super().__init__(waker)
        self._part = weakref.ref(part)

    def __call__(self, change: Callable[[torch.Tensor], torch.Tensor], *more: Any) -> object:  # noqa: ANN401 - torch's
        self.waker.resume()
        part = self._part()
        return part if part is None else type(part)._apply(part, change, *more)  # noqa: SLF001


def _has_tensors(part: torch.nn.Module) -> bool:
    tensors = (*part.parameters(recurse=False), *part.buffers(recurse=False))
    return len(tensors) > 0


def _before_step(optimizer: torch.optim.Optimizer, *_called_with: object) -> None:
    """A step on empty parameters would fail half-way."""
    resume_all(blocks_of(one for group in optimizer.param_groups for one in group["params"]))


def _watch_optimizers() -> None:
    global _watching  # noqa: PLW0603 - a hook of the process
    if not _watching:
        _watching = True
        register_optimizer_step_pre_hook(_before_step)


_watching = False
