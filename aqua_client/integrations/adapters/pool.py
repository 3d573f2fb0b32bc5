"""Which adapters are in the model, and which are parked: the least recently used go first.

1. An adapter comes before another goes: a failure leaves the model as it was, and there is room for
   one more than `resident` for a moment.
2. The active one and the one that came last never go. One that can't be parked for want of room stays, is counted, and is
   tried again at the next turn.
3. Calls take turns. A forward beside them is the caller's affair: `using` holds the turn.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, PeftType

from aqua_client import client as own
from aqua_client.errors import BrokerUnreachable, InsufficientMemory, InvalidRequest
from aqua_client.integrations.adapters.adapter import Adapter, layers_of


class AdapterPool:
    """The LoRA adapters of one model, for serving: they are frozen. Threads may share it.

    `model` is the model; `limit`, how many stay in it, may be set, and holds from the next turn on.
    """

    def __init__(
        self, model: PeftModel, *, resident: int = 20, client: own.Client | None = None
    ) -> None:
        """Take over the adapters that *model* has, the active one as the last used.

        *resident*: how many stay in the model, 1 or more; the others are parked.
        *client*: in whose memory; the process's own, unless given.

        Raises:
            InvalidRequest: they are no LoRA adapters, or have `modules_to_save`; or *resident* < 1.
        """
        if resident < 1:
            raise InvalidRequest(f"resident={resident} is not allowed: 1 or more")
        for name, config in model.peft_config.items():
            _check(name, config)
        self.model = model
        self.limit = resident
        self._offload_many = own.offload_many if client is None else client.offload_many
        self._turn = threading.RLock()
        self._counts: Counter[str] = Counter()
        self._adapters = {name: Adapter(model, name) for name in model.peft_config}
        self._layers = layers_of(model)
        self._here = OrderedDict.fromkeys(self._adapters)  # the least recently used first
        self._active = str(model.active_adapter)
        self.activate(self._active)
        self._counts.clear()

    def add(self, name: str, source: PeftConfig | str | Path) -> None:
        """Add an adapter: a new one of that configuration, or the saved one of that directory.

        It is in the model now, and not active.

        Raises:
            InvalidRequest: there is one of that name, or it is of a kind that can't be parked.
        """
        with self._turn:
            if name in self._adapters:
                raise InvalidRequest(f"there is an adapter {name!r} already: remove it first")
            if isinstance(source, PeftConfig):
                _check(name, source)
                self.model.add_adapter(name, source)
            else:
                _check(name, PeftConfig.from_pretrained(str(source)))
                self.model.load_adapter(str(source), name)
            self._adapters[name] = Adapter(self.model, name)
            self._adapters[self._active].freeze()  # peft before 0.21 has just made it trainable
            self._layers = layers_of(self.model)
            self._here[name] = None
            self._evict()

    def activate(self, name: str) -> None:
        """Let the model answer with that adapter, which is brought back if it is parked.

        Raises:
            InvalidRequest: there is none of that name, or an adapter is merged into the model.
            LeaseLost: its bytes are gone; `remove` it and add it again.
            HandleReleased, ForkedChild: as `fetch`. The model is as it was.
        """
        with self._turn:
            adapter = self._known(name)
            merged = next((one for layer in self._layers for one in layer.merged_adapters), None)
            if merged is not None:
                raise InvalidRequest(f"adapter {merged!r} is merged into the model: unmerge it")
            self._counts["activations"] += 1
            if not adapter.is_here:
                adapter.bring()
                self._counts["fetched"] += 1
            self._here[name] = None
            self._here.move_to_end(name)
            self._switch(name)
            self._evict()

    @contextmanager
    def using(self, name: str) -> Iterator[PeftModel]:
        """`activate`, and the model, which nobody gives another adapter within the block."""
        with self._turn:
            self.activate(name)
            yield self.model

    def remove(self, name: str) -> None:
        """Forget an adapter, parked or not.

        Raises:
            InvalidRequest: there is none of that name, or it is the active one.
        """
        with self._turn:
            adapter = self._known(name)
            if name == self._active:
                raise InvalidRequest(f"adapter {name!r} is active: activate another one first")
            if adapter.is_here:
                self.model.delete_adapter(name)
            self._here.pop(name, None)
            del self._adapters[name]

    @property
    def names(self) -> list[str]:
        """Of all adapters."""
        return list(self._adapters)

    @property
    def resident(self) -> list[str]:
        """Of those in the model, the least recently used first."""
        with self._turn:
            return list(self._here)

    @property
    def active(self) -> str:
        """The one that the model answers with."""
        return self._active

    def stats(self) -> dict[str, int]:
        """How many, by name.

        Now: `adapters`, and of them `resident`. Since it was made: `activations`; of them those
        that had to bring the adapter, `fetched`; adapters `parked`; and `kept` for want of room.
        """
        with self._turn:
            counts = {name: self._counts[name] for name in _COUNTS}
            return {"adapters": len(self._adapters), "resident": len(self._here), **counts}

    def _known(self, name: str) -> Adapter:
        adapter = self._adapters.get(name)
        if adapter is None:
            raise InvalidRequest(f"there is no adapter {name!r}: add it first")
        return adapter

    def _switch(self, name: str) -> None:
        # As peft's set_adapter, which besides goes over all modules of all adapters, to make them
        # trainable or not: with hundreds that takes longer than a forward.
        for layer in self._layers:
            layer._active_adapter = [name]  # noqa: SLF001 - see above
        for holder in (self.model, self.model.base_model):
            vars(holder)["active_adapter"] = name
        self._active = name

    def _evict(self) -> None:
        for name in list(self._here)[:-1]:
            if len(self._here) <= self.limit:
                return
            if name != self._active:
                try:
                    self._adapters[name].park(self._offload_many)
                except (InsufficientMemory, BrokerUnreachable):
                    self._counts["kept"] += 1
                    return
                self._counts["parked"] += 1
                del self._here[name]


def _check(name: str, config: Any) -> None:  # noqa: ANN401 - peft has one class for each kind
    if config.peft_type != PeftType.LORA:
        raise InvalidRequest(f"adapter {name!r} is of kind {config.peft_type}: LoRA can be parked")
    if config.modules_to_save or getattr(config, "trainable_token_indices", None):
        raise InvalidRequest(
            f"adapter {name!r} brings modules of its own (modules_to_save or "
            "trainable_token_indices): they can't be parked"
        )


_COUNTS = ("activations", "fetched", "parked", "kept")
