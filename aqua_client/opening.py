"""Opens a granted slab, by whichever kind of handle it comes, and checks that it is that slab.

Shared memory and CUDA memory look alike from here on: something to make tensors of, and to close.
Whatever goes wrong is an `UnusableSlab` with a reason to count, never an error of a driver's.
"""

from __future__ import annotations

import logging
import os
from typing import Protocol

import torch

from aqua_client import cuda_mapping, own_device
from aqua_client.cuda_errors import CudaError, CudaUnavailable
from aqua_client.cuda_mapping import CudaMapping
from aqua_client.errors import AquaError
from aqua_client.forking import GATE
from aqua_client.mapping import Mapping
from aqua_client.own_device import NoOwnDevice
from aqua_client.records import DescriptorKind, Grant

logger = logging.getLogger("aqua")


class UnusableSlab(AquaError):
    """A slab was granted, but this process can't use it. Never leaves the library."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Mapped(Protocol):
    """A slab in this process."""

    @property
    def ordinal(self) -> int | None:
        """The CUDA device of its tensors; None: the CPU."""

    @property
    def opened_on(self) -> int | None:
        """The CUDA device in whose context it is open; None: shared memory."""

    def whole(self) -> torch.Tensor:
        """All bytes. While it or a view of it lives, `close` fails."""

    def first_bytes(self, nbytes: int) -> bytes:
        """A copy of them."""

    def enlarge(self, nbytes: int) -> bool:
        """Have some pages of the first *nbytes* be larger ones; False: nothing is left to do."""

    def close(self) -> None:
        """Unmap. Idempotent. BufferError: it can't be now, and may be tried again."""


def open_slab(grant: Grant, *, home_gpu: str | None) -> Mapped:
    """Map a granted slab. The grant's descriptor is closed, whatever happens.

    Raises:
        UnusableSlab: it can't be mapped here, or is not the slab that it is said to be.
    """
    mapped = None
    try:
        with GATE.call_out():  # a child forked just then would have the descriptor, or the mapping
            try:
                if grant.keeper_pid == os.getpid():
                    message = "the keeper is in another PID namespace: share the host's (hostPID)"
                    raise UnusableSlab(message, reason="pid_namespace")
                mapped = _mapped(grant, home_gpu)
            finally:
                if grant.descriptor is not None:
                    os.close(grant.descriptor)
        _check_canary(mapped, grant)
    except BaseException:
        if mapped is not None:
            _close(mapped, grant)
        raise
    return mapped


class _Shared:
    """Shared memory, mapped."""

    ordinal = None
    opened_on = None

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping

    def whole(self) -> torch.Tensor:
        # Otherwise a first offload in inference mode would make a slab that can't be written
        # outside of it.
        with torch.inference_mode(mode=False):
            return torch.from_numpy(self._mapping.array)

    def first_bytes(self, nbytes: int) -> bytes:
        return self._mapping.array[:nbytes].tobytes()

    def enlarge(self, nbytes: int) -> bool:
        return self._mapping.enlarge(nbytes)

    def close(self) -> None:
        self._mapping.close()


def _mapped(grant: Grant, home_gpu: str | None) -> Mapped:
    if grant.descriptor is not None and grant.descriptor_kind is DescriptorKind.SHARED_MEMORY:
        try:
            return _Shared(Mapping(grant.descriptor, grant.nbytes))
        except OSError as error:
            raise UnusableSlab(f"a slab can't be mapped: {error}", reason="map") from error
    try:
        return _cuda(grant, home_gpu)
    except NoOwnDevice as error:
        raise UnusableSlab(str(error), reason="no_own_gpu") from error
    except CudaUnavailable as error:
        raise UnusableSlab(f"a CUDA slab can't be used: {error}", reason="no_cuda") from error
    except CudaError as error:
        raise UnusableSlab(f"a CUDA slab can't be opened: {error}", reason="cuda_open") from error


def _cuda(grant: Grant, home_gpu: str | None) -> CudaMapping:
    ordinal = own_device.own_ordinal(home_gpu)
    if grant.descriptor is not None:
        return cuda_mapping.open_vmm(
            grant.descriptor, lease_id=grant.lease_id, ordinal=ordinal, nbytes=grant.nbytes
        )
    return cuda_mapping.open_legacy(
        grant.cuda_ipc, lease_id=grant.lease_id, ordinal=ordinal, nbytes=grant.nbytes
    )


def _close(mapped: Mapped, grant: Grant) -> None:
    try:
        mapped.close()
    except BufferError as error:  # the driver would not: its own books still count the bytes
        logger.error("lease %s stays mapped, unused: %s", grant.lease_id, error)  # noqa: TRY400 - the traceback says nothing


def _check_canary(mapped: Mapped, grant: Grant) -> None:
    try:
        found = mapped.first_bytes(len(grant.canary))
        mapped.whole()  # can torch have tensors there?
    except CudaError as error:
        raise UnusableSlab(f"a CUDA slab can't be read: {error}", reason="cuda_open") from error
    except RuntimeError as error:
        message = f"this torch can't use memory of CUDA: {error}"
        raise UnusableSlab(message, reason="no_cuda") from error
    if found != grant.canary:
        message = f"the memory behind lease {grant.lease_id} is not the slab granted"
        raise UnusableSlab(message, reason="canary")
