"""NVRTC as far as the library uses it: it makes images that the made-up driver loads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from tests.fakes.fake_cuda.kernels import IMAGE

_images: dict[int, bytes] = {}


def nvrtcCreateProgram(
    src: bytes,
    name: bytes,  # noqa: ARG001 - the library has it
    numHeaders: int,
    headers: Sequence[bytes],  # noqa: ARG001
    includeNames: Sequence[bytes],  # noqa: ARG001
) -> tuple[int, int]:
    if numHeaders or b"__global__" not in src:
        return 4, 0
    program = len(_images) + 1
    _images[program] = b""
    return 0, program


def nvrtcCompileProgram(prog: int, numOptions: int, options: Sequence[bytes]) -> tuple[int]:
    wanted = [one for one in options[:numOptions] if one.startswith(b"--gpu-architecture=sm_")]
    if not wanted:
        return (5,)
    _images[prog] = IMAGE + wanted[0].rpartition(b"_")[2]
    return (0,)


def nvrtcGetCUBINSize(prog: int) -> tuple[int, int]:
    return 0, len(_images[prog])


def nvrtcGetCUBIN(prog: int, cubin: bytes) -> tuple[int]:
    """Written where the caller's bytes are, as the real one does."""
    image = _images[prog]
    place = ctypes.cast(ctypes.c_char_p(cubin), ctypes.c_void_p).value
    assert place is not None
    assert len(cubin) == len(image)
    ctypes.memmove(place, image, len(image))
    return (0,)


def nvrtcDestroyProgram(prog: int) -> tuple[int]:
    del _images[prog]
    return (0,)
