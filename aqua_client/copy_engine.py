"""Enqueues copies between addresses of one device, by one way or another.

To be called while acting on the device. Does not cover which way is the quickest (`crossover`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aqua_client import cuda_driver, cuda_kernels
from aqua_client.crossover import Way
from aqua_client.cuda_driver import call
from aqua_client.cuda_errors import CudaError
from aqua_client.streams import Begin, Piece, Pieces

# Where each piece is handed over by itself, that takes a microsecond or two: NVLink 4 needs three for it.
LEAST_TIMED_PIECE_BYTES = 2**20

# Numbers to memory of the device, in the current stream's order; the tensor must be kept meanwhile.
Upload = Callable[[npt.NDArray[np.uint64]], torch.Tensor]


def enqueue(
    way: Way,
    pieces: Pieces,
    *,
    ordinal: int,
    stream: int,
    upload: Upload,
    begin: Begin | None = None,
) -> None:
    """Copy them all, in no order among themselves; BATCH takes no default stream.

    *begin* is called when all is made ready.

    Raises:
        CudaError: the driver refuses; some may be enqueued.
    """
    begin = begin or _untimed
    if way is Way.EACH:
        listed = _listed(pieces)
        begin()
        one_by_one(listed, stream)
    elif way is Way.BATCH:
        _batch(_listed(pieces), stream, begin)
    elif way is Way.KERNEL:
        records = np.ascontiguousarray(pieces, dtype=np.uint64)
        kernel, most_bytes = cuda_kernels.load(ordinal), int(records[:, 2].max())
        there = upload(records)
        begin()
        kernel.launch(there.data_ptr(), len(records), most_bytes, stream)
    else:
        raise CudaError("AQUA_NO_SUCH_WAY", f"{way} is torch's")


def one_by_one(pieces: Sequence[Piece], stream: int) -> None:
    """A call for each.

    Raises:
        CudaError: as `enqueue`.
    """
    for to, source, nbytes in pieces:
        cuda_driver.copy(to, source, nbytes, stream)


def says_a_rate(way: Way, mean_bytes: int) -> bool:
    """Whether what it takes from `begin` on is the pieces' time, more than that of handing them over."""
    return way is Way.KERNEL or mean_bytes >= LEAST_TIMED_PIECE_BYTES


def is_default(stream: int) -> bool:
    """Null, legacy, or a thread's own: the driver takes no batch there."""
    return stream in {0, 1, 2}


def _listed(pieces: Pieces) -> list[Piece]:
    return pieces.tolist() if isinstance(pieces, np.ndarray) else list(pieces)


def _untimed() -> None:
    """Nobody asks what it takes."""


def _batch(pieces: list[Piece], stream: int, begin: Begin) -> None:
    if not cuda_driver.has_batches():
        raise CudaError("CUDA_FUNCTION_MISSING", "batches need a driver of CUDA 12.8 or newer")
    pointer = cuda_driver.driver().CUdeviceptr
    targets = [pointer(to) for to, _, _ in pieces]
    sources = [pointer(source) for _, source, _ in pieces]
    sizes = [nbytes for _, _, nbytes in pieces]
    begin()
    call(
        "cuMemcpyBatchAsync",
        targets,
        sources,
        sizes,
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
