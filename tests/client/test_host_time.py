"""What the library's own part of a call costs on CUDA: all but the driver's and torch's time.

The driver answers at once and copies nothing, so what is timed is ours alone: printed, and held to ten
times what is promised for the whole of a call.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType

import pytest
import torch

from aqua_client import cuda_driver
from aqua_client.cuda_streams import CudaStreams
from tests.client.pagers import paging, park
from tests.fakes.session import MIB, FakeNode

PROMISED_SECONDS = 15e-6
CALLS = 300


class Instant(ModuleType):
    """A driver that has always done what it is asked."""

    class CUstreamCaptureMode:
        """As far as it is used."""

        CU_STREAM_CAPTURE_MODE_RELAXED = 2

    class CUstream_flags:  # noqa: N801 - the driver's name
        """As above."""

        CU_STREAM_NON_BLOCKING = 1

    def __getattr__(self, name: str) -> Callable[..., tuple[int, int]]:
        if not name.startswith("cu"):
            raise AttributeError(name)
        found: Callable[..., tuple[int, int]] = lambda *_: (0, 1)  # noqa: E731 - one for each name
        setattr(self, name, found)
        return found


class InstantTorch:
    """Tensors of the CPU are those of device 0."""

    def ordinal(self, device: torch.device) -> int | None:
        return 0 if device.type == "cpu" else None

    def is_capturing(self) -> bool:
        return False

    def current(self, ordinal: int) -> int:
        return ordinal

    def using(self, ordinal: int, stream: int) -> nullcontext[None]:
        assert ordinal == 0
        assert stream
        return nullcontext()

    def keep(self, tensor: torch.Tensor, ordinal: int, stream: int) -> None:
        pass

    def upload(self, numbers: torch.Tensor, ordinal: int) -> torch.Tensor:
        assert ordinal == 0
        return numbers


def test_a_call_costs_its_caller_little(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An offload and a fetch, with and without `out`, of whatever size."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", Instant("cuda.bindings.driver"))
    monkeypatch.setattr(cuda_driver, "_initialised", [sys.modules["cuda.bindings.driver"]])
    monkeypatch.setattr(cuda_driver, "_contexts", {0: 1})
    tensor, out = torch.zeros(MIB, dtype=torch.uint8), torch.zeros(MIB, dtype=torch.uint8)
    node = FakeNode(gpu_bytes={"SHM-1": 64 * MIB})
    with paging(node, streams=CudaStreams(InstantTorch())) as pager:
        held = park(pager, tensor)
        (slab,) = pager._tiers.slabs.values()
        slab.memory.opened_on = 0
        took: dict[str, list[float]] = {"offload": [], "fetch(out=)": []}
        for _ in range(CALLS):
            began = time.perf_counter()
            handle = park(pager, tensor)
            offloaded = time.perf_counter()
            handle.fetch(out=out)
            took["fetch(out=)"].append(time.perf_counter() - offloaded)
            took["offload"].append(offloaded - began)
            handle.release()
            threading.Event().wait(0.001)  # for the thread that looks at what was enqueued
        held.release()
        slab.memory.opened_on = None
    with capsys.disabled():
        words = ", ".join(f"{name} {min(each) * 1e6:.1f} us" for name, each in took.items())
        print(f"\nof a call, ours: {words}", end="")
    assert all(min(each) < 10 * PROMISED_SECONDS for each in took.values())
