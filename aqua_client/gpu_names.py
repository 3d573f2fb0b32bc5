"""The name that the daemon knows a GPU by: ordinals are this process's own, the node has UUIDs."""

from __future__ import annotations

import sys
from typing import Protocol, cast

from aqua_client.errors import InvalidRequest


def uuid_of(gpu: object) -> str:
    """The name that the daemon knows *gpu* by.

    Raises:
        InvalidRequest: it names none.
    """
    name = f"cuda:{gpu}" if isinstance(gpu, int) else str(gpu)
    if name.startswith(("GPU-", "SHM-")):
        return name
    kind, _, ordinal = name.partition(":")
    # Who has a CUDA device in hand has imported torch; everybody else does without it.
    torch = cast("_Torch | None", sys.modules.get("torch"))
    if kind != "cuda" or torch is None or (ordinal and not ordinal.isdigit()):
        msg = f'{gpu!r} names no GPU: give its UUID ("GPU-..."), "SHM-n" or a CUDA device of torch'
        raise InvalidRequest(msg)
    if not torch.cuda.is_available():
        msg = f"{gpu!r} names no GPU: torch sees no CUDA device in this process"
        raise InvalidRequest(msg)
    number = int(ordinal) if ordinal else torch.cuda.current_device()
    if number >= torch.cuda.device_count():
        msg = f"{gpu!r} names no GPU: torch sees {torch.cuda.device_count()} CUDA devices"
        raise InvalidRequest(msg)
    return f"GPU-{torch.cuda.get_device_properties(number).uuid}"


class _Properties(Protocol):
    @property
    def uuid(self) -> object: ...


class _Cuda(Protocol):
    def is_available(self) -> bool: ...
    def current_device(self) -> int: ...
    def device_count(self) -> int: ...
    def get_device_properties(self, device: int) -> _Properties: ...


class _Torch(Protocol):
    @property
    def cuda(self) -> _Cuda: ...
