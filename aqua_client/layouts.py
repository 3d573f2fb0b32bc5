"""What a tensor must look like again when it comes back: shape, strides, dtype, device.

Says which tensors can be parked and why the others can't. Copies nothing; that is `copying`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from aqua_client.errors import InvalidRequest, UnsupportedTensor

# torch can make and view these, but has no kernel that copies them: they are copied as bytes.
_WITHOUT_COPY = frozenset(
    getattr(torch, f"{kind}{bits}")
    for kind in ("int", "uint")
    for bits in range(1, 8)
    if hasattr(torch, f"{kind}{bits}")
)
_STRIDED = torch.strided
_QUANTISED = frozenset({torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How bytes become the tensor again."""

    shape: torch.Size
    stride: tuple[int, ...]  # of what is stored: dense, in the tensor's own order of dimensions
    dtype: torch.dtype
    copy_dtype: torch.dtype  # of the same size, with a copy kernel
    device: torch.device
    requires_grad: bool
    itemsize: int
    nbytes: int
    # The tensor's bytes lie in the CPU's memory as they are stored: `copying` says what that is
    # good for.
    is_plain: bool


def layout_of(tensor: object) -> Layout:
    """The layout that *tensor* is stored in.

    Raises:
        UnsupportedTensor: it has no dense bytes of its own; the message says what to do.
    """
    kind = type(tensor)
    if not isinstance(tensor, torch.Tensor):
        raise UnsupportedTensor(f"a torch.Tensor can be parked, not {_a(kind)}")
    if kind is not torch.Tensor and kind is not torch.nn.Parameter:
        raise UnsupportedTensor(
            f"{_a(kind)} keeps more than its bytes: park the plain tensors that it is made of"
        )
    try:
        if tensor.layout is _STRIDED:
            return _layout(
                tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad
            )
    except RuntimeError:  # the layout of a nested tensor is strided too, but it has no shape
        if not tensor.is_nested:
            raise
    raise UnsupportedTensor(_why_not_dense(tensor))


def check_out(out: object, layout: Layout) -> torch.Tensor:
    """*out*, when what has *layout* may be fetched into it.

    Raises:
        InvalidRequest: it has another shape or dtype, or elements that share memory.
    """
    if not isinstance(out, torch.Tensor) or out.layout is not _STRIDED or out.is_nested:
        raise InvalidRequest("out= must be a dense torch.Tensor")
    if out.shape != layout.shape or out.dtype is not layout.dtype:
        raise InvalidRequest(
            f"out= has shape {tuple(out.shape)} and {out.dtype}, the parked tensor has "
            f"{tuple(layout.shape)} and {layout.dtype}"
        )
    if out.is_meta:
        raise InvalidRequest("out= has no bytes: it is a meta tensor")
    if not out.is_contiguous() and _may_overlap(out.shape, out.stride()):
        raise InvalidRequest("elements of out= share memory: pass one of its own, such as clone()")
    return out


# One model has few layouts, and working one out costs more than a small copy.
@lru_cache(maxsize=4096)
def _layout(
    shape: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    requires_grad: bool,  # noqa: FBT001 - lru_cache is quickest by position
) -> Layout:
    if dtype in _QUANTISED:
        raise UnsupportedTensor(
            f"{dtype} is a quantised dtype: park tensor.int_repr() and keep its scales"
        )
    if device.type == "meta":
        raise UnsupportedTensor("a meta tensor has no bytes: give it memory first (to_empty)")
    count = math.prod(shape)
    nbytes = count * dtype.itemsize
    dense = count == 0 or (not _may_overlap(shape, stride) and _span(shape, stride) == count)
    return Layout(
        shape=shape,
        stride=stride if dense else _contiguous(shape),
        dtype=dtype,
        copy_dtype=torch.uint8 if dtype in _WITHOUT_COPY else dtype,
        device=device,
        requires_grad=requires_grad,
        itemsize=dtype.itemsize,
        nbytes=nbytes,
        is_plain=dense and device.type == "cpu" and not dtype.is_complex,  # it may be a conjugate
    )


def _may_overlap(shape: torch.Size, stride: tuple[int, ...]) -> bool:
    """Whether two elements may share memory: true unless dimensions nest one in another."""
    reach = 1
    for step, length in sorted(zip(stride, shape, strict=True)):
        if length == 1:
            continue
        if length == 0:
            return False
        if step < reach:
            return True
        reach = step * (length - 1) + reach
    return False


def _span(shape: torch.Size, stride: tuple[int, ...]) -> int:
    """From the first element to the last, in elements."""
    return 1 + sum(step * (length - 1) for step, length in zip(stride, shape, strict=True))


def _contiguous(shape: torch.Size) -> tuple[int, ...]:
    stride: list[int] = []
    step = 1
    for length in reversed(shape):
        stride.append(step)
        step *= max(1, length)
    return tuple(reversed(stride))


def _why_not_dense(tensor: torch.Tensor) -> str:
    if tensor.is_nested:
        return "a nested tensor can't be parked: park each part (tensor.unbind()), or pad it"
    return (
        f"a tensor of layout {tensor.layout} can't be parked: park its parts "
        "(indices() and values()), or tensor.to_dense()"
    )


def _a(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
