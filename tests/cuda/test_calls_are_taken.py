"""What is called on the made-up driver, cuda-bindings would take: each argument of each call.

Without a driver the real module still looks at arguments first, and only then says that the library
is missing; what it can't use it refuses before. So every call is made there again. What it gives back
is compared by `test_fakes_are_true`, where there is a device.
"""

from __future__ import annotations

import ctypes
import io
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from enum import IntEnum
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch

from aqua_client import cuda_driver, cuda_kernels
from aqua_client.copying import Memory
from aqua_client.crossover import Way
from aqua_client.cuda_driver import acting_on, call
from aqua_client.cuda_streams import CudaStreams
from aqua_daemon.keeper.cuda_driver import CudaDevice, CudaError
from tests.conftest import NOT_RUN_HERE
from tests.cuda.client_door.looks import LENDER, home
from tests.cuda.exporter import KINDS, exporting
from tests.cuda.test_fakes_are_true import _cuda_bindings
from tests.fakes.cuda_node import FakeCudaNode, fake_cuda_node
from tests.fakes.fake_cuda import structs
from tests.fakes.torch_streams import DEVICE, HostTorch
from tests.gpu.probe import driver as probe_driver
from tests.gpu.probe import meter, stage
from tests.gpu.probe.acting import Acting, Said, Told
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.plan import QUICK
from tests.gpu.probe.steps import STEPS, machine
from tests.nodes import REPOSITORY, wait_until

MIB = 2**20
PROGRAMS = ("aqua_client", "aqua_daemon")
SLAB = 2 * MIB
_NAME = re.compile(r'"(cu[A-Z][A-Za-z0-9_]+)"')


class Retold:
    """The calls so far, as cuda-bindings got them, and those that it did not take."""

    def __init__(self, real: Any) -> None:  # noqa: ANN401 - a module without types
        self._real = real
        self.names: set[str] = set()
        self.refused: dict[str, str] = {}

    def listening(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """*function*, and the real one of that name is asked, too."""

        def both(*arguments: object) -> object:
            self.names.add(name)
            try:
                getattr(self._real, name)(*(self._theirs(each) for each in arguments))
            except RuntimeError:
                pass  # there is no driver
            except (AttributeError, OverflowError, TypeError, ValueError) as error:
                self.refused[name] = str(error)
            return function(*arguments)

        return both

    def _theirs(self, ours: object) -> object:
        kind = type(ours).__name__
        if isinstance(ours, list):
            return [self._theirs(each) for each in ours]
        if isinstance(ours, IntEnum):
            return getattr(self._real, kind)(int(ours))
        if isinstance(ours, structs._Handle):
            return getattr(self._real, kind)(int(ours))
        if type(ours).__module__ != structs.__name__:
            return ours
        theirs = getattr(self._real, kind)()
        self._fill(theirs, ours)
        return theirs

    def _fill(self, theirs: Any, ours: Any) -> None:  # noqa: ANN401 - structures of two modules
        if isinstance(ours, structs.CUipcMemHandle):
            ctypes.memmove(theirs.getPtr(), ours.getPtr(), structs.HANDLE_BYTES)
            return
        for name in ours.__slots__:
            value = getattr(ours, name)
            if type(value).__module__ == structs.__name__:
                self._fill(getattr(theirs, name), value)
            elif value:
                setattr(theirs, name, self._theirs(value))


@pytest.fixture
def node(tmp_path: Path) -> FakeCudaNode:
    return fake_cuda_node(tmp_path, gpus=8, memory=1024 * MIB)


@pytest.fixture
def retold(node: FakeCudaNode, monkeypatch: pytest.MonkeyPatch) -> Iterator[Retold]:
    """This process is one of the node, and all that it calls is retold."""
    found = Retold(_bindings_without_a_driver())
    monkeypatch.setattr(cuda_kernels, "_loaded", {})  # another test's, which loaded it untold
    with node.in_process():
        from cuda.bindings import driver

        for name, value in list(vars(driver).items()):
            if name.startswith("cu") and isinstance(value, FunctionType):
                monkeypatch.setattr(driver, name, found.listening(name, value))
        yield found


def _bindings_without_a_driver() -> Any:  # noqa: ANN401 - a module without types
    real = _cuda_bindings()
    try:
        real.cuInit(0)
    except RuntimeError:
        return real
    pytest.skip(f"{NOT_RUN_HERE}a driver is here, which a call with a made-up address would reach")


def copy_some(device: CudaDevice) -> None:
    """In a thread of its own, as a keeper does."""
    with device.timed_copies() as copy_seconds:
        pinned = device.allocate_host(SLAB)
        copy_seconds(pinned, pinned, SLAB)
        device.free_host(pinned)


def keep(node: FakeCudaNode) -> None:
    """What a keeper does: from its context to its slabs of either kind, and when something fails."""
    with (
        CudaDevice(node.uuids[0], no_mps=node.directory / "no-mps") as device,
        ExitStack() as stack,
    ):
        address = device.allocate(SLAB)
        device.write(address, device.read(address, 64))
        device.ipc_handle(address)
        device.free(address)
        memory = device.create(SLAB)
        stack.callback(device.release, memory)
        mapped = device.map(memory, SLAB)
        device.fill_zero(mapped, SLAB)
        device.unmap(mapped, SLAB)
        descriptor = device.export(memory)
        stack.callback(os.close, descriptor)
        device.release(device.imported(descriptor))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(copy_some, device).result(20)
        assert device.ailment() is None
        with suppress(CudaError):  # of nobody's memory
            device.open_ipc(bytes(64))


def find_and_pin() -> None:
    """What a client asks of devices, and its host memory."""
    buffer = ctypes.create_string_buffer(MIB)
    with acting_on(DEVICE):
        assert cuda_driver.current_ordinal() == DEVICE
        call("cuCtxSynchronize")
    assert cuda_driver.has_context(DEVICE)
    cuda_driver.pin(ctypes.addressof(buffer), MIB, ordinal=DEVICE)
    cuda_driver.unpin(ctypes.addressof(buffer), ordinal=DEVICE)


def open_and_close(node: FakeCudaNode, kind: str) -> None:
    """What a client does with a slab, but for copying."""
    with exporting(node, gpu=node.uuids[LENDER], kind=kind) as slab:
        Memory.of_grant(slab.grant(), home_gpu=home(node)).close()


def copy(way: Way) -> None:
    """Beside the default stream, and in streams of the library's."""
    source, target = (torch.full((64,), fill, dtype=torch.uint8) for fill in (7, 0))
    streams = CudaStreams(HostTorch())
    streams.copy_by(way, source.device, [(target.data_ptr(), source.data_ptr(), 64)])
    event = streams.record(source.device, [DEVICE])
    assert event is not None
    wait_until(event.is_done, what="it is copied")
    assert torch.equal(source, target)
    began = streams.begin_timing(source.device, "GPU-1", nbytes=64)
    ended = streams.record(source.device, [DEVICE], since=began)
    assert ended is not None
    wait_until(ended.is_done, what="it is over")
    assert ended.nanoseconds > 0
    later = streams.record(source.device, [DEVICE])
    assert later is not None
    with streams.aside(source, inward=True), streams.on_own_stream(DEVICE):
        later.wait_on_current_stream()


def named() -> set[str]:
    """Every function of the driver that the daemon's and the client's source has in quotes."""
    files = [path for name in PROGRAMS for path in (REPOSITORY / name).rglob("*.py")]
    return {name for path in files for name in _NAME.findall(path.read_text())}


def test_all_that_the_doors_call(node: FakeCudaNode, retold: Retold) -> None:
    """No argument is refused, and no function that they name was left out here."""
    keep(node)
    find_and_pin()
    for kind in KINDS:
        open_and_close(node, kind)
    for way in Way:
        if way is not Way.TORCH:
            copy(way)
    node.fail("cuCtxSynchronize", 214)
    with pytest.raises(CudaError, match="ECC"):
        CudaDevice(node.uuids[1], no_mps=node.directory / "no-mps")
    assert retold.refused == {}
    assert named() - retold.names <= {"cuDeviceGetUuid_v2"}  # of CUDA 12 alone


@pytest.mark.parametrize("name", ["machine", "bandwidth", "scattered", "capture"])
def test_all_that_a_step_of_the_probe_calls(
    node: FakeCudaNode, retold: Retold, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """These are the steps that call most themselves; what they found does not matter here."""
    import pynvml
    from cuda.bindings import driver

    monkeypatch.setattr(probe_driver, "driver", driver)
    monkeypatch.setattr(meter, "pynvml", pynvml)
    monkeypatch.setattr(machine, "pynvml", pynvml)
    monkeypatch.setenv("PYTHONPATH", node.environment()["PYTHONPATH"])
    (step,) = (one for one in STEPS if one.name == name)
    step.load()(QUICK, stage.devices(), Findings(io.StringIO()))
    assert retold.refused == {}


def test_all_that_a_process_of_the_probe_calls(
    retold: Retold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory of both kinds from its making to its end, and a user's launches beside it."""
    from cuda.bindings import driver

    monkeypatch.setattr(probe_driver, "driver", driver)
    acting = Acting()

    def do(verb: str, **told: Any) -> Said:  # noqa: ANN401 - a request's arguments
        said = acting.do(verb, Told(**told))
        assert said.error == ""
        return said

    do("init")
    do("context")
    do("launch", text="driver")
    for kind in KINDS:
        number = do("allocate", kind=kind, nbytes=SLAB).number
        do("fill", number=number, value=3)
        assert do("count", number=number, value=3).number == SLAB
        said = do("export", number=number)
        if said.descriptor is not None:
            opened = do("open", kind=kind, nbytes=SLAB, descriptor=said.descriptor).number
            do("close", number=opened)
            os.close(said.descriptor)
        do("free", number=number)
    do("pin", nbytes=MIB)
    do("stop")
    assert retold.refused == {}


def test_what_is_not_taken_is_seen(retold: Retold) -> None:
    """Text is no address, although the fake makes a number of it."""
    from cuda.bindings import driver

    driver.cuInit(0)
    driver.cuMemFree("7")
    assert list(retold.refused) == ["cuMemFree"]
