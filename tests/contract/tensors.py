"""Tensors of every dtype and of the layouts that servers have, and whether two are bit by bit one."""

from __future__ import annotations

from collections.abc import Iterator

import torch

QUANTISED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}
DTYPES = sorted(
    {one for one in vars(torch).values() if isinstance(one, torch.dtype)} - QUANTISED, key=str
)


def noise(nbytes: int, *, seed: int, device: str) -> torch.Tensor:
    """The same bytes for the same seed, wherever they are."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)
    return made.to(device)


def every_tensor(device: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Each dtype, plain and permuted; then what is special about a layout."""
    for dtype in DTYPES:
        flat = (noise(60 * dtype.itemsize, seed=3, device=device) % 2).view(dtype)
        yield str(dtype), flat
        yield f"{dtype}, permuted", flat.reshape(3, 4, 5).permute(2, 0, 1)
    yield "a scalar", torch.tensor(2.5, device=device)
    yield "empty", torch.zeros(0, 4, device=device)
    images = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    yield "channels last", images.to(device)
    yield "large", noise(20 * 2**20 + 3, seed=4, device=device)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """The same dtype, shape, strides, device and bits."""
    if (one.dtype, one.shape, one.stride()) != (other.dtype, other.shape, other.stride()):
        return False
    if one.device != other.device:
        return False
    flat = [t.as_strided((t.numel(),), (1,)).view(torch.uint8) for t in (one, other)]
    return torch.equal(*flat)
