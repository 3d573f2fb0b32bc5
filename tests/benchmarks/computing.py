"""A server that computes without end and has tensors parked: told line by line what to do.

    python -m tests.benchmarks.computing

Between two iterations it looks at its input; each line is a command, each answer one line of JSON.

    park KEEP BYTES    park so much, and wait until its host memory for evacuations is touched, and its
                       slabs are of huge pages, as far as the library sees to it
    forget KEEP BYTES  the same, and release it: slabs that hold nothing
    load torch|python  what an iteration is: a product of matrices, or a loop of the interpreter
    check              compare every byte, then release all
    copy BYTES TOUCHED how long a plain copy takes beside the iterations, that many bytes of the
                       destination being touched
    unmap BYTES        how long a plain munmap of so much shared memory, whose pages were touched, takes
                       beside the iterations
    paper BYTES        answer a request as the paper's consumers do: looked for every 4 s, at the
                       end of an iteration; then everything is copied before the next one
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

import aqua_client
from aqua_client import libc

TENSOR_BYTES = 8 * 2**20
CHUNK_BYTES = 16 * 2**20
SIDE = 384  # of the matrices: an iteration takes about a millisecond
LOOPS = 20_000  # of the interpreter: the same
PAPER_POLL_SECONDS = 4.0
SETTLE_SECONDS = 20.0
SETTLE_STEP_SECONDS = 2.0  # longer than slabs have to be quiet to be made of huge pages

Answer = dict[str, float | str]


class Computing:
    """The server."""

    def __init__(self) -> None:
        self.client = aqua_client.connect()
        self._matrix = torch.rand(SIDE, SIDE)
        self._noise = torch.randint(0, 256, (TENSOR_BYTES,), dtype=torch.uint8)
        self._handles: list[aqua_client.OffloadedTensor] = []
        self.iterate: Callable[[], None] = self.compute

    def compute(self) -> None:
        torch.mm(self._matrix, self._matrix)

    def spin(self) -> None:
        for _ in range(LOOPS):
            pass

    def obey(self, line: str) -> Answer:
        match line.split():
            case ["park", keep, nbytes]:
                return self._park(keep, int(nbytes))
            case ["forget", keep, nbytes]:
                answer = self._park(keep, int(nbytes))
                self._release()
                return answer
            case ["load", kind]:
                self.iterate = self.spin if kind == "python" else self.compute
                return {}
            case ["check"]:
                return self._check()
            case ["copy", nbytes, touched]:
                return {"seconds": self._copy_beside(int(nbytes), int(touched))}
            case ["unmap", nbytes]:
                return {"seconds": self._unmap_beside(int(nbytes))}
            case ["paper", nbytes]:
                return {"seconds": self._paper(int(nbytes))}
            case words:
                msg = f"no such command: {words}"
                raise ValueError(msg)

    def _park(self, keep: str, nbytes: int) -> Answer:
        for _ in range(nbytes // TENSOR_BYTES):
            self._handles.append(self.client.offload(self._noise, keep=keep))
        ready, end = (-1, -1), time.monotonic() + SETTLE_SECONDS
        while (now := (self._buffered_bytes(), _huge_bytes())) != ready and time.monotonic() < end:
            ready = now
            threading.Event().wait(SETTLE_STEP_SECONDS)  # it comes by and by
        tiers = "+".join(sorted({handle.tier for handle in self._handles}))
        return {"tier": tiers, "touched": float(max(ready[0], 0))}

    def _buffered_bytes(self) -> int:
        found = self.client.stats()["evacuation_buffer_bytes"]
        return found if isinstance(found, int) else 0

    def _check(self) -> Answer:
        equal = lost = 0
        for handle in self._handles:
            try:
                equal += torch.equal(handle.fetch(), self._noise)
            except aqua_client.LeaseLost:
                lost += 1
        found: Answer = {"equal": equal, "lost": lost, "of": len(self._handles)}
        self._release()
        return found

    def _release(self) -> None:
        for handle in self._handles:
            handle.release()
        self._handles.clear()

    def _copy_beside(self, nbytes: int, touched: int) -> float:
        source, target = _touched(nbytes), torch.empty(nbytes, dtype=torch.uint8)
        target[:touched].zero_()
        return self._seconds_beside(lambda: _copy(source, target))

    def _unmap_beside(self, nbytes: int) -> float:
        """The pages stay, as those of a slab that its keeper holds."""
        descriptor = os.memfd_create("unmapped")
        os.ftruncate(descriptor, nbytes)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        address = libc.mmap(None, nbytes, protection, mmap.MAP_SHARED, descriptor, 0)
        libc.madvise(address, nbytes, libc.MADV_HUGEPAGE)  # as slabs are
        ctypes.memset(address, 1, nbytes)
        taken = self._seconds_beside(lambda: libc.munmap(address, nbytes))
        os.close(descriptor)
        return taken

    def _seconds_beside(self, act: Callable[[], object]) -> float:
        """In another thread, as an evacuation is."""
        taken: list[float] = []

        def run() -> None:
            start = time.monotonic()
            act()
            taken.append(time.monotonic() - start)

        thread = threading.Thread(target=run)
        thread.start()
        while thread.is_alive():
            self.iterate()
        return taken[0]

    def _paper(self, nbytes: int) -> float:
        """Asked in the middle between two looks; its shadow is always allocated, and touched."""
        source, target = _touched(nbytes), _touched(nbytes)
        looked_at = time.monotonic()
        asked_at = looked_at + PAPER_POLL_SECONDS / 2
        while time.monotonic() < looked_at + PAPER_POLL_SECONDS:
            self.iterate()
        _copy(source, target)
        return time.monotonic() - asked_at


def _huge_bytes() -> int:
    """Of shared memory, here."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("ShmemPmdMapped:"))


def _touched(nbytes: int) -> torch.Tensor:
    return torch.ones(nbytes, dtype=torch.uint8)


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    for begin in range(0, source.numel(), CHUNK_BYTES):
        target[begin : begin + CHUNK_BYTES].copy_(source[begin : begin + CHUNK_BYTES])


def main() -> None:
    torch.set_num_threads(1)
    computing = Computing()
    print(json.dumps({}), flush=True)
    while True:
        if select.select([sys.stdin], [], [], 0)[0]:
            line = sys.stdin.readline()
            if not line:
                return
            print(json.dumps(computing.obey(line)), flush=True)
        computing.iterate()


if __name__ == "__main__":
    main()
