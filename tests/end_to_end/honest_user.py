"""What an honest server goes on doing: offloads and fetches with the library, and compares."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import torch

import aqua_client
from tests.end_to_end.other_users import Asked, run

_TENSOR_ELEMENTS = 2**18  # of 4 bytes
_PAUSE_SECONDS = 0.5  # few enough calls for a limit that a flood meets on a busy machine, too
_T = TypeVar("_T")


def go_on(asked: Asked, until: float) -> Counter[str]:
    """What an honest server does: offloads, fetches, compares; each round as a new client, too."""
    counts: Counter[str] = Counter()
    slowest = {"offload": 0.0, "fetch": 0.0, "release": 0.0}
    pause = threading.Event()
    data = torch.arange(_TENSOR_ELEMENTS, dtype=torch.int32)

    def timed(name: str, what: Callable[[], _T]) -> _T:
        began = time.monotonic()
        result = what()
        slowest[name] = max(slowest[name], time.monotonic() - began)
        return result

    with aqua_client.connect(socket=asked.socket, home_gpu="SHM-0") as old:
        parked = old.offload(data)
        while not counts or time.monotonic() < until:
            with aqua_client.connect(socket=asked.socket, home_gpu="SHM-0") as client:
                handle = client.offload(data)
                counts[f"new client: {handle.tier}"] += 1
                assert torch.equal(handle.fetch(), data)
            handle = timed("offload", lambda: old.offload(data))
            counts[f"old client: {handle.tier}"] += 1
            assert torch.equal(timed("fetch", handle.fetch), data)
            assert torch.equal(parked.fetch(), data)
            timed("release", handle.release)
            pause.wait(_PAUSE_SECONDS)
    return counts + Counter({f"slowest {name} us": int(1e6 * s) for name, s in slowest.items()})


if __name__ == "__main__":
    run({"go_on": go_on})
