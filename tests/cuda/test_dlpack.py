"""Tensors of memory that has only an address: its bytes, its aliases, its end."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch

from aqua_client import dlpack
from tests.conftest import NOT_RUN_HERE

NBYTES = 4096


def memory() -> tuple[np.ndarray[tuple[int], np.dtype[np.uint8]], int]:
    """Numbered bytes and where they are."""
    array = np.arange(NBYTES, dtype=np.uint8)
    return array, array.ctypes.data


def test_a_tensor_is_the_memory_itself() -> None:
    """Its bytes are those at the address, and what is written to one is read from the other."""
    array, address = memory()
    tensor = dlpack.tensor_at(address, NBYTES, ordinal=None)
    assert (tensor.dtype, tensor.shape, tensor.device.type) == (torch.uint8, (NBYTES,), "cpu")
    assert tensor.data_ptr() == address
    assert tensor.is_contiguous()
    assert torch.equal(tensor, torch.from_numpy(array))
    tensor[7] = 99
    assert array[7] == 99
    array[8] = 77
    assert tensor[8] == 77


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64, torch.bool])
def test_it_may_be_viewed_as_any_dtype(dtype: torch.dtype) -> None:
    """As slabs are."""
    array, address = memory()
    view = dlpack.tensor_at(address, NBYTES, ordinal=None).view(dtype)
    assert view.numel() == NBYTES // dtype.itemsize
    view.copy_(torch.ones(view.numel(), dtype=dtype))
    assert np.array_equal(array[:8], torch.ones(8, dtype=dtype).view(torch.uint8)[:8].numpy())


def test_its_storage_lives_as_long_as_any_view() -> None:
    """And tells by a weak reference when the last one has gone."""
    array, address = memory()
    tensor = dlpack.tensor_at(address, NBYTES, ordinal=None)
    storage = weakref.ref(tensor.untyped_storage())
    view = tensor.view(torch.int32)[3:9].as_strided((2, 2), (2, 1), 4)
    del tensor
    gc.collect()
    assert storage() is not None
    assert view.numel() == 4
    del view
    gc.collect()
    assert storage() is None
    assert array[5] == 5


def test_a_tensor_made_in_inference_mode_can_be_written_outside() -> None:
    """Otherwise a server's first slab would spoil all later offloads."""
    array, address = memory()
    with torch.inference_mode():
        tensor = dlpack.tensor_at(address, NBYTES, ordinal=None)
    tensor.view(torch.float32).fill_(2.0)
    assert array[:4].view(np.float32)[0] == 2.0


def test_memory_where_torch_has_no_device_is_a_runtime_error() -> None:
    """And a thousand of them leak nothing."""
    if torch.cuda.is_available():
        pytest.skip(f"{NOT_RUN_HERE}this torch has CUDA devices")
    _, address = memory()
    before = _used_bytes()
    for _ in range(1000):
        with pytest.raises(RuntimeError):
            dlpack.tensor_at(address, NBYTES, ordinal=0)
    assert _used_bytes() - before < 64 * 1024


def test_a_thousand_tensors_leak_nothing() -> None:
    """What describes each of them is freed with it."""
    _, address = memory()
    for _ in range(100):
        dlpack.tensor_at(address, NBYTES, ordinal=None)
    before = _used_bytes()
    for _ in range(1000):
        dlpack.tensor_at(address, NBYTES, ordinal=None)
    assert _used_bytes() - before < 64 * 1024


_AT_EXIT = """
import atexit, ctypes, sys, torch
from aqua_client import dlpack

block = ctypes.create_string_buffer(4096)
kept = dlpack.tensor_at(ctypes.addressof(block), 4096, ordinal=None)
kept.view(torch.int64).fill_(5)

class Late:
    # Outlives the module's dictionary, and frees the tensor when the interpreter is half gone.
    def __init__(self, tensor):
        self.tensor = tensor

sys.late = Late(kept)
torch.late = kept.view(torch.float32)[4:]
cycle = [kept]
cycle.append(cycle)
print("alive", flush=True)
"""


def test_the_end_of_the_interpreter_is_survived() -> None:
    """Tensors may go when Python can run nothing any more."""
    done = subprocess.run(
        [sys.executable, "-c", _AT_EXIT], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


def _used_bytes() -> int:
    """What malloc has handed out."""
    gc.collect()
    return int(_mallinfo().uordblks)


class _Mallinfo(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


_mallinfo = ctypes.CDLL(None).mallinfo2
_mallinfo.restype = _Mallinfo
