"""The fakes against what they stand for: cuda-bindings by name, a real GPU by what it does.

`ANSWERS` are small programs with the answers that CUDA gives; the fake is asked them everywhere,
the real driver where there is one.
"""

from __future__ import annotations

import inspect
import os
from enum import IntEnum
from pathlib import Path
from types import FunctionType
from typing import Any

from tests.conftest import require_module
from tests.fakes.cuda_node import fake_cuda_node
from tests.fakes.cuda_program import Program
from tests.fakes.fake_cuda import driver as fake
from tests.fakes.fake_cuda import nvrtc as fake_nvrtc
from tests.fakes.fake_cuda.description import GIB

_ROOT = Path(__file__).resolve().parents[2]
# program before, expression, its value; on one GPU, in one process that has device 0 in use
ANSWERS = {
    "a handle does not open where it was made": (
        "p = ok(d.cuMemAlloc(2 << 20)); h = handle_of(p)",
        "int(open_handle(h)[0])",
        201,
    ),
    "a handle has 64 bytes": ("", "len(bytes.fromhex(h))", 64),
    "bytes go and come back": (
        "ok(d.cuMemcpyHtoD(p, b'abcdef', 6))",
        "bytes.fromhex(read(int(p) + 2, 3)).decode()",
        "cde",
    ),
    "a fill fills": ("ok(d.cuMemsetD8(p, 7, 4))", "read(p, 5)", "0707070765"),
    "an address range is the allocation": (
        "",
        "(lambda base, n: [int(base) - int(p), n])(*ok(d.cuMemGetAddressRange(int(p) + 9)))",
        [0, 2 << 20],
    ),
    "freed memory is not freed again": (
        "ok(d.cuMemFree(p))",
        "int(d.cuMemFree(p)[0])",
        1,
    ),
    "more than there is": ("", "int(d.cuMemAlloc(1 << 50)[0])", 2),
    "nothing is no size": ("", "int(d.cuMemAlloc(0)[0])", 1),
    "an ordinal that is not there": ("", "int(d.cuDeviceGet(99)[0])", 101),
    "physical memory maps": (
        (
            "m = ok(d.cuMemCreate(2 << 20, properties(0), 0))\n"
            "va = ok(d.cuMemAddressReserve(2 << 20, 0, 0, 0)); ok(d.cuMemMap(va, 2 << 20, 0, m, 0))\n"
            "ok(d.cuMemSetAccess(va, 2 << 20, [access(0)], 1)); ok(d.cuMemsetD8(va, 9, 4))"
        ),
        "read(va, 2)",
        "0909",
    ),
    "its descriptor comes back as itself": (
        (
            "kind = d.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR\n"
            "f = ok(d.cuMemExportToShareableHandle(m, kind, 0))\n"
            "n = ok(d.cuMemImportFromShareableHandle(f, kind)); os.close(f)"
        ),
        "int(d.cuMemRelease(n)[0])",
        0,
    ),
    "it has no legacy handle": ("", "int(d.cuIpcGetMemHandle(va)[0])", 1),
    "part of a granule is refused": ("", "int(d.cuMemCreate(4096, properties(0), 0)[0])", 1),
    "it unmaps": (
        "ok(d.cuMemUnmap(va, 2 << 20)); ok(d.cuMemAddressFree(va, 2 << 20))",
        "int(d.cuMemRelease(m)[0])",
        0,
    ),
    "an event that was never recorded is done": (
        "e, s = ok(d.cuEventCreate(2)), ok(d.cuStreamCreate(1))",
        "int(d.cuEventQuery(e)[0])",
        0,
    ),
    "a stream is waited for": (
        (
            "p = ok(d.cuMemAlloc(2 << 20)); ok(d.cuMemsetD8Async(p, 3, 8, s))\n"
            "ok(d.cuEventRecord(e, s)); ok(d.cuEventSynchronize(e))"
        ),
        "[int(d.cuEventQuery(e)[0]), read(p, 1)]",
        [0, "03"],
    ),
    "modes are exchanged": (
        (
            "relaxed = d.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED\n"
            "was = int(ok(d.cuThreadExchangeStreamCaptureMode(relaxed)))"
        ),
        "[was, int(ok(d.cuThreadExchangeStreamCaptureMode(d.CUstreamCaptureMode(was))))]",
        [0, 2],
    ),
    "a query spoils one's own capture": (
        "ok(d.cuStreamBeginCapture(s, d.CUstreamCaptureMode(0)))",
        "[int(d.cuStreamQuery(s)[0]), int(d.cuStreamEndCapture(s)[0])]",
        [900, 901],
    ),
    "host memory is registered once": (
        "b = (ctypes.c_char * 8192)(); a = ctypes.addressof(b); ok(d.cuMemHostRegister(a, 8192, 0))",
        "[int(d.cuMemHostUnregister(a)[0]) for _ in range(2)]",
        [0, 713],
    ),
    "errors have names": (
        "",
        "ok(d.cuGetErrorName(d.CUresult(201))).decode()",
        "CUDA_ERROR_INVALID_CONTEXT",
    ),
    "a name ends with a zero byte": ("", "b'\\0' in ok(d.cuDeviceGetName(128, 0))", True),
    "no context, no memory": (
        "ok(d.cuCtxSetCurrent(d.CUcontext(0)))",
        "int(d.cuMemAlloc(8)[0])",
        201,
    ),
}


def ask_all(environment: dict[str, str]) -> dict[str, object]:
    answers = {}
    with Program(environment, "use_device(0)") as program:
        for name, (before, expression, _) in ANSWERS.items():
            program.run(before)
            answers[name] = program.ask(expression)
    return answers


def test_the_fake_answers_as_cuda_does(tmp_path: Path) -> None:
    """Each of the answers below."""
    node = fake_cuda_node(tmp_path, gpus=1, memory=4 * GIB)
    assert ask_all(node.environment()) == {name: value for name, (_, _, value) in ANSWERS.items()}


def test_a_real_driver_gives_the_same_answers(cuda_device: int) -> None:  # noqa: ARG001 - marks it
    """On a GPU, through cuda-bindings."""
    path = os.pathsep.join([str(_ROOT), str(_ROOT / "protos")])
    answers = ask_all({**os.environ, "PYTHONPATH": path})
    assert answers == {name: value for name, (_, _, value) in ANSWERS.items()}


def test_a_real_nvml_answers_in_the_same_types(cuda_device: int, tmp_path: Path) -> None:  # noqa: ARG001 - marks it
    """What the fake answers of a GPU, the real module answers too or does not support."""
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    told = {name: _asked(getattr(pynvml, name), handle) for name in _OF_A_HANDLE}
    pynvml.nvmlShutdown()
    with fake_cuda_node(tmp_path, gpus=1).in_process():
        import pynvml as faked

        faked.nvmlInit()
        handle = faked.nvmlDeviceGetHandleByIndex(0)
        for name, real_type in told.items():
            ours = _asked(getattr(faked, name), handle)
            assert ours == real_type or "NotSupported" in {ours, real_type}, name


def test_each_name_is_that_of_cuda_bindings() -> None:
    """Functions with their parameters, enums with their numbers, structs with their fields."""
    real = _cuda_bindings()
    for name, value in vars(fake).items():
        if name.startswith("cu") and isinstance(value, FunctionType):
            wanted = list(inspect.signature(getattr(real, name)).parameters)
            assert list(inspect.signature(value).parameters) == wanted, name
        elif name.startswith("CU") and isinstance(value, type) and issubclass(value, IntEnum):
            theirs = {key: int(member) for key, member in getattr(real, name).__members__.items()}
            ours = {key: int(member) for key, member in value.__members__.items()}
            assert ours.items() <= theirs.items(), name
        elif name.startswith("CU") and hasattr(real, name) and isinstance(value, type):
            ours_of = {each for each in dir(value()) if each[0] != "_"}
            assert ours_of <= set(dir(getattr(real, name)())), name


def test_the_compiler_is_called_as_nvrtc_is() -> None:
    """Its functions have the same parameters."""
    _cuda_bindings()
    from cuda.bindings import nvrtc

    for name, value in vars(fake_nvrtc).items():
        if name.startswith("nvrtc"):
            wanted = list(inspect.signature(getattr(nvrtc, name)).parameters)
            assert list(inspect.signature(value).parameters) == wanted, name


def test_handles_turn_into_numbers_as_those_of_cuda_bindings() -> None:
    """All by `int`, and some are indices."""
    for module in (_cuda_bindings(), fake):
        for name in ("CUdevice", "CUdeviceptr", "CUmemGenericAllocationHandle"):
            handle = getattr(module, name)(5)
            assert int(handle) == 5
            assert not hasattr(handle, "__index__")
        for name in ("CUcontext", "CUstream", "CUevent", "CUmodule", "CUfunction"):
            assert getattr(module, name)(5).__index__() == 5


def _asked(function: Any, handle: object) -> str:  # noqa: ANN401 - of a module without types
    try:
        return type(function(handle)).__name__
    except Exception as error:  # noqa: BLE001 - its name is the answer
        return type(error).__name__.removeprefix("NVMLError_")


_OF_A_HANDLE = (
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetIndex",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetMPSComputeRunningProcesses",
    "nvmlDeviceGetComputeMode",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetEccMode",
    "nvmlDeviceGetPciInfo",
    "nvmlDeviceGetNumaNodeId",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetCurrPcieLinkGeneration",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetRemappedRows",
    "nvmlDeviceGetPersistenceMode",
)


def _cuda_bindings() -> Any:  # noqa: ANN401 - a module without types
    return require_module("cuda.bindings.driver", "cuda-bindings")
