"""A fake node for tests: processes that get its environment find its GPUs by driver and NVML.

    node = fake_cuda_node(tmp_path, gpus=8, memory=80 * GIB)
    subprocess.run([sys.executable, "-c", PROGRAM], env=node.environment(), check=True)
    assert node.used_bytes(node.uuids[0]) == 0

`in_process()` lets the calling process itself be one of them. Covers looking at the node from
outside and making things go wrong; what the driver does is in tests/fakes/fake_cuda.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Unpack

from tests.fakes.fake_cuda import nvml_state, process
from tests.fakes.fake_cuda.books import Allocation, Context, FreedWhileMapped
from tests.fakes.fake_cuda.choices import Choices
from tests.fakes.fake_cuda.description import GIB, NodeDescription
from tests.fakes.fake_cuda.faults import ANY_CALL, Fault
from tests.fakes.fake_cuda.registry import Registry
from tests.fakes.topologies import hgx_h100

_ROOT = Path(__file__).resolve().parents[2]
_SITE = Path(__file__).resolve().parent / "cuda_site"
_SHADOWED = ("cuda", "pynvml")


def fake_cuda_node(
    directory: Path,
    gpus: int = 8,
    memory: int = 80 * GIB,
    *,
    topology: NodeDescription | None = None,
    **choices: Unpack[Choices],
) -> FakeCudaNode:
    """Write a node's folder: so many linked GPUs, or a recorded topology, with these choices."""
    description = replace(topology or hgx_h100(gpus=gpus, memory_bytes=memory), **choices)
    for name in ("allocations", "leftovers", "gone", "lost", "stalled", "fail", "state"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    description.write(directory)
    return FakeCudaNode(directory)


class FakeCudaNode:
    """One node's folder, seen from outside."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._registry = Registry(directory)
        self.description = self._registry.node
        self.uuids = [gpu.uuid for gpu in self.description.gpus]

    def environment(self, **more: str) -> dict[str, str]:
        """For a process of the node: this one's environment, and the fakes first on its path."""
        ours = [str(_SITE), str(_ROOT), str(_ROOT / "protos")]
        inherited = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
        path = os.pathsep.join([*ours, *(part for part in inherited if part not in ours)])
        kept = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        return {**kept, "PYTHONPATH": path, "FAKE_CUDA_NODE": str(self.directory), **more}

    @contextmanager
    def in_process(self) -> Iterator[None]:
        """`from cuda.bindings import driver` and `import pynvml` are the fakes meanwhile."""
        shadowed = _take_modules()
        before = dict(os.environ)
        os.environ["FAKE_CUDA_NODE"] = str(self.directory)
        sys.path.insert(0, str(_SITE))
        process.forget()
        try:
            yield
        finally:
            process.end()
            nvml_state.forget()
            sys.path.remove(str(_SITE))
            os.environ.clear()
            os.environ.update(before)
            _take_modules()
            sys.modules.update(shadowed)

    def used_bytes(self, uuid: str) -> int:
        """All that is used on the GPU, as NVML would say."""
        with self._registry.books() as books:
            return books.used_bytes(uuid) + self.description.system_bytes

    def contexts(self) -> list[Context]:
        """Each process's context on each GPU."""
        with self._registry.books() as books:
            return books.contexts

    @property
    def contexts_made(self) -> int:
        """How many there ever were."""
        with self._registry.books() as books:
            return books.contexts_made

    def allocations(self) -> list[Allocation]:
        """What the GPUs hold, freed ones that somebody has mapped among them."""
        with self._registry.books() as books:
            return list(books.allocations.values())

    def mapped_by(self, number: int) -> list[int]:
        """The pids of those that have the allocation mapped and do not own it."""
        with self._registry.books() as books:
            owner = books.allocations[number].owner if number in books.allocations else ""
            holds = books.holds_of(number, "import", "mapping", "handle")
            return sorted({hold.pid for hold in holds if hold.holder != owner})

    @property
    def freed_while_mapped(self) -> list[FreedWhileMapped]:
        with self._registry.books() as books:
            return books.freed_while_mapped

    @property
    def touched_after_unmap(self) -> int:
        """Queued copies whose memory was gone when their turn came."""
        with self._registry.books() as books:
            return books.touched_after_unmap

    def bytes_by_pid(self, uuid: str) -> dict[int, int]:
        with self._registry.books() as books:
            return books.bytes_by_pid(uuid)

    def content(self, number: int, nbytes: int) -> bytes:
        """The first bytes of an allocation."""
        with self._registry.file_of(number).open("rb") as file:
            return file.read(nbytes)

    def remove_gpu(self, uuid: str) -> None:
        """It falls off the bus: NVML says lost, the driver fails."""
        (self.directory / "gone" / uuid).touch()

    def stall_nvml(self, uuid: str) -> None:
        """NVML calls on it do not come back until `resume_nvml`."""
        (self.directory / "stalled" / uuid).touch()

    def resume_nvml(self, uuid: str) -> None:
        (self.directory / "stalled" / uuid).unlink(missing_ok=True)

    def change_gpu(self, uuid: str, **fields: int | str | bool | list[int] | None) -> None:
        """NVML tells these fields of the GPU's description from now on, changed all at once."""
        path = self.directory / "state" / uuid
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(fields))
        fresh.rename(path)

    def lose_in_nvml(self, uuid: str) -> None:
        """NVML says lost, and the driver goes on as if nothing had been."""
        (self.directory / "lost" / uuid).touch()

    def return_gpu(self, uuid: str) -> None:
        """It is there again, as after a reset. Processes that knew it before never use it again."""
        (self.directory / "gone" / uuid).unlink()

    def fail(
        self,
        function: str,
        result: int | None,
        *,
        gpu: str = "",
        pid: int = 0,
        first_call: int = 1,
        times: int = 0,
    ) -> None:
        """Calls of the driver's function end with this CUresult; None: it works again.

        Of all processes, unless *pid* names one, in contexts on *gpu*; beginning with the
        *first_call* of each, and so many *times*. They change nothing: the context stays as it was.
        """
        path = self.directory / "fail" / function
        if result is None:
            path.unlink(missing_ok=True)
        else:
            Fault(code=result, gpu=gpu, pid=pid, first_call=first_call, times=times).write(path)

    def hang(self, *, pid: int) -> None:
        """No call of this process comes back any more, until `fail("any", None)`."""
        Fault(code=0, pid=pid, hangs=True).write(self.directory / "fail" / ANY_CALL)

    def kill_context(
        self,
        result: int,
        *,
        gpu: str = "",
        pid: int = 0,
        function: str = ANY_CALL,
        first_call: int = 1,
    ) -> None:
        """The same, and the context that is struck is dead: whatever is called there fails.

        For good, also when `fail(function, None)` has taken the order back: until its process ends.
        """
        path = self.directory / "fail" / function
        Fault(code=result, is_sticky=True, gpu=gpu, pid=pid, first_call=first_call).write(path)

    def set_process(self, uuid: str, pid: int, nbytes: int) -> None:
        """Another process uses this much of the GPU; 0: it is gone."""
        with self._registry.books() as books:
            processes = books.others.setdefault(uuid, {})
            processes[pid] = nbytes
            if nbytes == 0:
                del processes[pid]


def _take_modules() -> dict[str, ModuleType]:
    taken = {
        name: module for name, module in sys.modules.items() if name.split(".")[0] in _SHADOWED
    }
    for name in taken:
        del sys.modules[name]
    return taken
