"""A user's loop of small launches, each waited for: what it takes longer than usual is a stall."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from tests.gpu.probe.driver import call, new_stream, use_device
from tests.gpu.probe.names import Times

BUFFER_BYTES = 64 * 2**10


class Launches:
    """The loop, in a thread of its own, until `stop`."""

    def __init__(self, ordinal: int, *, by_torch: bool) -> None:
        self._ordinal, self._by_torch = ordinal, by_torch
        self._seconds: list[float] = []
        self._wanted = True
        self._running = threading.Event()
        self._failure = ""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Return when it has begun."""
        self._thread.start()
        self._running.wait(60.0)

    def take(self) -> Times:
        """What the launches since the last call took, in seconds."""
        taken, self._seconds = self._seconds, []
        if self._failure or not taken:
            return {"launches": 0.0}
        shares = {"median": 50.0, "p99": 99.0, "longest": 100.0}
        found = {name: float(np.percentile(taken, share)) for name, share in shares.items()}
        return {"launches": float(len(taken)), **found}

    def stop(self) -> str:
        """End it; why it had ended by itself, if it had."""
        self._wanted = False
        self._thread.join(10.0)
        return self._failure

    def _run(self) -> None:
        try:
            once = self._torch_launch() if self._by_torch else self._driver_launch()
            for _ in range(20):
                once()
            self._running.set()
            while self._wanted:
                begun = time.perf_counter()
                once()
                self._seconds.append(time.perf_counter() - begun)
        except Exception as error:  # noqa: BLE001 - whatever ends the user's loop is the answer
            self._failure = f"{type(error).__name__}: {error}"
        finally:
            self._running.set()

    def _driver_launch(self) -> Callable[[], None]:
        use_device(self._ordinal)
        stream, buffer = new_stream(), call("cuMemAlloc", BUFFER_BYTES)

        def once() -> None:
            call("cuMemsetD8Async", buffer, 1, BUFFER_BYTES, stream)
            call("cuStreamSynchronize", stream)

        return once

    def _torch_launch(self) -> Callable[[], None]:
        import torch

        torch.cuda.set_device(self._ordinal)
        tensor = torch.zeros(BUFFER_BYTES // 4, device=f"cuda:{self._ordinal}")
        stream = torch.cuda.current_stream()

        def once() -> None:
            tensor.add_(1)
            stream.synchronize()

        return once


def torch_has_cuda() -> bool:
    """Whether torch is here and sees a CUDA device; asking makes no context."""
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())
