"""Which GPU is this process's own: the one that slabs are opened on and leases are for.

Chosen once, because the library's thread, and any thread of a server's, would answer device 0 for
itself, and opening something there would make a context nobody wants.
"""

from __future__ import annotations

import os

import torch

from aqua_client import cuda_driver
from aqua_client.errors import AquaError


class NoOwnDevice(AquaError):
    """Nothing says which GPU is this process's. Never leaves the library."""


def own_ordinal(home_gpu: str | None) -> int:
    """The ordinal, in this process, of the device to open slabs on.

    It is the home GPU's, except where torch has its context elsewhere: no other one is made.

    Raises:
        NoOwnDevice: there is no context yet, and no home GPU that is visible here.
        CudaError: the driver does not say.
    """
    if home_gpu not in _chosen:
        _chosen[home_gpu] = _choose(home_gpu)
    return _chosen[home_gpu]


def torch_gpu() -> str | None:
    """The UUID of torch's current device; None while it uses none, and none is touched to ask."""
    if not _torch_has_context():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"GPU-{properties.uuid}"


def _choose(home_gpu: str | None) -> int:
    home = cuda_driver.ordinal_of(home_gpu) if home_gpu else None
    if _torch_has_context():
        if home is not None and cuda_driver.has_context(home):
            return home
        return torch.cuda.current_device()
    if home is not None:
        return home
    if home_gpu:
        raise NoOwnDevice(
            f"the home GPU {home_gpu} is not visible to this process: check AQUA_HOME_GPU and "
            "CUDA_VISIBLE_DEVICES"
        )
    current = cuda_driver.current_ordinal()
    if current is None:
        raise NoOwnDevice(
            "this process has no CUDA context to open a slab in: set AQUA_HOME_GPU to the UUID of "
            "the GPU that it is to use"
        )
    return current


def _torch_has_context() -> bool:
    return bool(torch.cuda.is_initialized())


_chosen: dict[str | None, int] = {}

os.register_at_fork(after_in_child=_chosen.clear)
