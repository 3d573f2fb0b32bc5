"""Page tensors into leased memory of neighbouring GPUs.

    handle = aqua_client.offload(tensor)
    tensor = handle.fetch()

Public names resolve at their first use, so that importing this costs nothing: no torch, no gRPC.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aqua_client.client import (
        Client,
        connect,
        fetch_many,
        offload,
        offload_async,
        offload_many,
        pool,
        stats,
    )
    from aqua_client.errors import (
        AquaError,
        BrokerUnreachable,
        ForkedChild,
        HandleReleased,
        InsufficientMemory,
        InvalidRequest,
        InvalidSetting,
        LeaseLost,
        NotAnOwner,
        Refused,
        UnsupportedTensor,
    )
    from aqua_client.fallback import AquaWarning
    from aqua_client.informing import (
        BatchFigures,
        BatchInformer,
        Informer,
        LlmFigures,
        LlmInformer,
        LlmThresholds,
        Margins,
    )
    from aqua_client.integrations.activations import Activations, offload_activations
    from aqua_client.integrations.modules import ParkedModule, park, unpark
    from aqua_client.out_of_memory import ReclaimOnOom, reclaim_on_oom
    from aqua_client.pools import BlockPool, Slots
    from aqua_client.producing import Producer, producer
    from aqua_client.records import ReclaimOutcome, ReclaimProgress, ReclaimResult
    from aqua_client.scheduling import FairScheduler, FairSettings
    from aqua_client.tensors import OffloadedTensor

__version__ = "0.2.0"

_HOMES = {
    "client": (
        "Client",
        "connect",
        "fetch_many",
        "offload",
        "offload_async",
        "offload_many",
        "pool",
        "stats",
    ),
    "errors": (
        "AquaError",
        "BrokerUnreachable",
        "ForkedChild",
        "HandleReleased",
        "InsufficientMemory",
        "InvalidRequest",
        "InvalidSetting",
        "LeaseLost",
        "NotAnOwner",
        "Refused",
        "UnsupportedTensor",
    ),
    "fallback": ("AquaWarning",),
    "informing": (
        "BatchFigures",
        "BatchInformer",
        "Informer",
        "LlmFigures",
        "LlmInformer",
        "LlmThresholds",
        "Margins",
    ),
    "integrations.activations": ("Activations", "offload_activations"),
    "integrations.modules": ("ParkedModule", "park", "unpark"),
    "out_of_memory": ("ReclaimOnOom", "reclaim_on_oom"),
    "pools": ("BlockPool", "Slots"),
    "producing": ("Producer", "producer"),
    "records": ("ReclaimOutcome", "ReclaimProgress", "ReclaimResult"),
    "scheduling": ("FairScheduler", "FairSettings"),
    "tensors": ("OffloadedTensor",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Activations",
    "AquaError",
    "AquaWarning",
    "BatchFigures",
    "BatchInformer",
    "BlockPool",
    "BrokerUnreachable",
    "Client",
    "FairScheduler",
    "FairSettings",
    "ForkedChild",
    "HandleReleased",
    "Informer",
    "InsufficientMemory",
    "InvalidRequest",
    "InvalidSetting",
    "LeaseLost",
    "LlmFigures",
    "LlmInformer",
    "LlmThresholds",
    "Margins",
    "NotAnOwner",
    "OffloadedTensor",
    "ParkedModule",
    "Producer",
    "ReclaimOnOom",
    "ReclaimOutcome",
    "ReclaimProgress",
    "ReclaimResult",
    "Refused",
    "Slots",
    "UnsupportedTensor",
    "connect",
    "fetch_many",
    "offload",
    "offload_activations",
    "offload_async",
    "offload_many",
    "park",
    "pool",
    "producer",
    "reclaim_on_oom",
    "stats",
    "unpark",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return importlib.import_module(f"{__name__}.{name}")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value: object = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    except ModuleNotFoundError as error:
        if error.name == "torch":
            error.add_note('tensors need PyTorch: pip install "aqua-broker[client]"')
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
