"""Enqueues copies between addresses of one device: a call each, or all of them in one.

To be called while acting on the device. A batch needs a driver of CUDA 12.8 or newer, and a stream
that is not the default one. Does not cover which is the quicker (`crossover`), nor gathering (`rows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aqua_client import cuda_driver
from aqua_client.cuda_driver import call
from aqua_client.streams import Piece

# Where nobody has measured: the driver works on the first while the others are enqueued.
LEAST_BATCH = 16


def enqueue(pieces: Sequence[Piece], stream: int) -> None:
    """Copy them all, in no order among themselves.

    Raises:
        CudaError: the driver refuses; some may be enqueued.
    """
    if len(pieces) >= LEAST_BATCH and can_batch(stream):
        batch(pieces, stream)
    else:
        one_by_one(pieces, stream)


def one_by_one(pieces: Sequence[Piece], stream: int) -> None:
    """A call for each.

    Raises:
        CudaError: as `enqueue`.
    """
    for to, source, nbytes in pieces:
        call("cuMemcpyAsync", to, source, nbytes, stream)


def can_batch(stream: int) -> bool:
    """Whether the driver takes many copies for this stream in one call."""
    return stream not in _DEFAULT_STREAMS and cuda_driver.has_batches()


def batch(pieces: Sequence[Piece], stream: int) -> None:
    """All in one call.

    Raises:
        CudaError: as `enqueue`.
    """
    pointer = cuda_driver.driver().CUdeviceptr
    call(
        "cuMemcpyBatchAsync",
        [pointer(to) for to, _, _ in pieces],
        [pointer(source) for _, source, _ in pieces],
        [nbytes for _, _, nbytes in pieces],
        len(pieces),
        [_in_stream_order()],
        [0],
        1,
        stream,
    )


def _in_stream_order() -> Any:  # noqa: ANN401 - cuda-bindings has no types
    cuda = cuda_driver.driver()
    attributes = cuda.CUmemcpyAttributes()
    order = cuda.CUmemcpySrcAccessOrder
    attributes.srcAccessOrder = order.CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
    return attributes


_DEFAULT_STREAMS = frozenset({0, 1, 2})  # null, legacy, a thread's own: the driver takes none
