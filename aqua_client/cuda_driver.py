"""The CUDA driver as the client uses it: finding it, and acting on a device.

The client's only importer of `cuda.bindings`, and it imports it late: a process without CUDA never
pays for it. What is called when is `cuda_mapping`'s and `streams`', what it refuses `cuda_errors`'.

Story of a thread that acts: a server may be capturing a graph in another thread, and there one
call of ours could end that capture. So whoever acts on a device does it in that device's primary
context (which torch uses too, so that no second one is made) and in the relaxed capture mode, and
leaves the thread as it was.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aqua_client.cuda_errors import CudaError, CudaUnavailable, explained

_SUCCESS = 0
_NOT_READY = 600
_FIRST_WITH_BATCHES = 12080  # CUDA 12.8
_PORTABLE = 1  # CU_MEMHOSTREGISTER_PORTABLE: for every context of the process
_GPU_PREFIX = "GPU-"


def driver() -> Any:  # noqa: ANN401 - cuda-bindings has no types
    """`cuda.bindings.driver`, initialised.

    Raises:
        CudaUnavailable: it is not installed, or finds no driver or no device.
    """
    # Importing it again takes far longer.
    if _initialised and sys.modules.get("cuda.bindings.driver") is _initialised[0]:
        return _initialised[0]
    try:
        from cuda.bindings import driver as bindings
    except ImportError as error:
        remedy = "pip install cuda-bindings of the driver's major version"
        raise CudaUnavailable("CUDA_BINDINGS_MISSING", f"{error}; {remedy}") from error
    if bindings not in _initialised:
        try:
            code = bindings.cuInit(0)[0]
        except RuntimeError as error:  # how cuda-bindings says that libcuda is missing
            raise CudaUnavailable("CUDA_DRIVER_MISSING", str(error)) from error
        if int(code) != _SUCCESS:
            raise CudaUnavailable(*explained(bindings, code))
        _contexts.clear()
        _initialised[:] = [bindings]
    return bindings


def call(name: str, *arguments: object) -> Any:  # noqa: ANN401 - cuda-bindings has no types
    """Call a function of the driver; what it returns beside its result code.

    Raises:
        CudaError: it failed.
    """
    bindings = driver()
    try:
        code, *values = getattr(bindings, name)(*arguments)
    except RuntimeError as error:  # this driver has no such function
        raise CudaError("CUDA_FUNCTION_MISSING", f"{name}: {error}") from error
    if int(code) != _SUCCESS:
        raise CudaError(*explained(bindings, code))
    return values[0] if len(values) == 1 else tuple(values)


@contextmanager
def acting_on(ordinal: int) -> Iterator[None]:
    """Make a device's primary context current, in the relaxed capture mode; then undo that."""
    context = _primary_context(ordinal)
    before = call("cuCtxGetCurrent")
    call("cuCtxSetCurrent", context)
    try:
        with relaxed_capture():
            yield
    finally:
        call("cuCtxSetCurrent", before)


@contextmanager
def relaxed_capture() -> Iterator[None]:
    """What this thread calls meanwhile ends no graph capture of another one."""
    mode = call("cuThreadExchangeStreamCaptureMode", _relaxed())
    try:
        yield
    finally:
        call("cuThreadExchangeStreamCaptureMode", mode)


def is_current(ordinal: int) -> bool:
    """Whether this thread acts on the device anyway."""
    bindings = driver()
    context = _contexts.get(ordinal)
    if context is None:
        return False
    code, current = bindings.cuCtxGetCurrent()
    return not int(code) and int(current) == int(context)


def copy(to: int, source: int, nbytes: int, stream: int) -> None:
    """Enqueue it. This and the next two are on the way of every offload and fetch.

    Raises:
        CudaError: the driver refuses.
    """
    bindings = driver()
    code = bindings.cuMemcpyAsync(to, source, nbytes, stream)[0]
    if int(code):
        raise CudaError(*explained(bindings, code))


def record(event: int, stream: int) -> None:
    """Let *event* be the end of what the stream has been given.

    Raises:
        CudaError: as `copy`.
    """
    bindings = driver()
    code = bindings.cuEventRecord(event, stream)[0]
    if int(code):
        raise CudaError(*explained(bindings, code))


def wait_for(event: int, stream: int) -> None:
    """What the stream is given from now on comes after *event*.

    Raises:
        CudaError: as `copy`.
    """
    bindings = driver()
    code = bindings.cuStreamWaitEvent(stream, event, 0)[0]
    if int(code):
        raise CudaError(*explained(bindings, code))


def is_over(event: int) -> bool:
    """Whether what came before the event is done. To be called while acting on its device.

    Raises:
        CudaError: the device has failed.
    """
    bindings = driver()
    with relaxed_capture():
        code = bindings.cuEventQuery(event)[0]
    if int(code) == _NOT_READY:
        return False
    if int(code) != _SUCCESS:
        raise CudaError(*explained(bindings, code))
    return True


def architecture(ordinal: int) -> int:
    """What kernels are compiled for: 90 is compute capability 9.0."""
    kinds = driver().CUdevice_attribute
    device = call("cuDeviceGet", ordinal)
    major = kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    minor = kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
    found = [int(call("cuDeviceGetAttribute", each, device)) for each in (major, minor)]
    return 10 * found[0] + found[1]


def has_batches() -> bool:
    """Whether the driver copies many pieces by one call."""
    has_function = hasattr(driver(), "cuMemcpyBatchAsync")
    return has_function and int(call("cuDriverGetVersion")) >= _FIRST_WITH_BATCHES


def settle_thread(ordinal: int) -> None:
    """Let this thread act on a device for good. The device comes first: a mode needs one."""
    call("cuCtxSetCurrent", _primary_context(ordinal))
    call("cuThreadExchangeStreamCaptureMode", _relaxed())


def ordinal_of(gpu: str) -> int | None:
    """The ordinal of a GPU in this process; None: it is not visible here."""
    for ordinal in range(int(call("cuDeviceGetCount"))):
        if uuid_of(ordinal) == gpu:
            return ordinal
    return None


def uuid_of(ordinal: int) -> str:
    """A GPU's name on the wire."""
    name = "cuDeviceGetUuid_v2" if hasattr(driver(), "cuDeviceGetUuid_v2") else "cuDeviceGetUuid"
    digits = bytes(call(name, call("cuDeviceGet", ordinal)).bytes).hex()
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return _GPU_PREFIX + "-".join(parts)


def current_ordinal() -> int | None:
    """The device of this thread's context; None: it has none."""
    if not int(call("cuCtxGetCurrent")):
        return None
    return int(call("cuCtxGetDevice"))


def has_context(ordinal: int) -> bool:
    """Whether this process has a primary context there already."""
    _flags, is_active = call("cuDevicePrimaryCtxGetState", call("cuDeviceGet", ordinal))
    return bool(is_active)


def new_stream(ordinal: int) -> int:
    """A stream of nobody else's, which does not wait for the default one."""
    with acting_on(ordinal):
        flag = driver().CUstream_flags.CU_STREAM_NON_BLOCKING
        return int(call("cuStreamCreate", int(flag)))


def read_bytes(address: int, nbytes: int) -> bytes:
    """Copy a few bytes out. To be called while acting on a device.

    On a stream of its own: the default one would first wait for all that the server has enqueued.
    """
    bindings = driver()
    found = ctypes.create_string_buffer(nbytes)
    stream = call("cuStreamCreate", int(bindings.CUstream_flags.CU_STREAM_NON_BLOCKING))
    try:
        source = bindings.CUdeviceptr(address)
        call("cuMemcpyDtoHAsync", ctypes.addressof(found), source, nbytes, stream)
        call("cuStreamSynchronize", stream)
    finally:
        call("cuStreamDestroy", stream)
    return found.raw


def pin(address: int, nbytes: int, *, ordinal: int) -> None:
    """Let the device copy to and from pages of this process by itself.

    Raises:
        CudaError: the driver does not.
    """
    with acting_on(ordinal):
        call("cuMemHostRegister", address, nbytes, _PORTABLE)


def unpin(address: int, *, ordinal: int) -> None:
    """Undo `pin`.

    Raises:
        CudaError: the driver does not; the pages must stay.
    """
    with acting_on(ordinal):
        call("cuMemHostUnregister", address)


def numa_node(ordinal: int) -> int | None:
    """The NUMA node next to the device; None: the driver does not say."""
    kind = getattr(driver().CUdevice_attribute, "CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID", None)
    if kind is None:
        return None
    try:
        node = int(call("cuDeviceGetAttribute", kind, call("cuDeviceGet", ordinal)))
    except CudaError:
        return None
    return node if node >= 0 else None


def known_bytes(address: int) -> int | None:
    """The size of the allocation at a pointer; None: the driver does not say."""
    try:
        _base, size = call("cuMemGetAddressRange", driver().CUdeviceptr(address))
    except CudaError:
        return None
    return int(size)


def is_host_memory(address: int) -> bool:
    """Whether the driver says that a pointer of its own is the host's memory."""
    bindings = driver()
    attribute = bindings.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
    kind = call("cuPointerGetAttribute", attribute, bindings.CUdeviceptr(address))
    return int(kind) == int(bindings.CUmemorytype.CU_MEMORYTYPE_HOST)


def _primary_context(ordinal: int) -> Any:  # noqa: ANN401 - cuda-bindings has no types
    """Retained once, and kept: one that torch made stays torch's too."""
    driver()
    context = _contexts.get(ordinal)
    if context is not None:
        return context
    with _contexts_lock:
        context = _contexts.get(ordinal)
        if context is None:
            device = call("cuDeviceGet", ordinal)
            context = _contexts[ordinal] = call("cuDevicePrimaryCtxRetain", device)
        return context


def _relaxed() -> Any:  # noqa: ANN401 - cuda-bindings has no types
    return driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED


def _forget_in_child() -> None:
    """CUDA does not survive a fork; the driver says so itself when it is asked again."""
    global _contexts_lock  # noqa: PLW0603 - whoever held it is not here
    _contexts_lock = threading.Lock()
    _contexts.clear()
    _initialised.clear()


_initialised: list[Any] = []
_contexts: dict[int, Any] = {}
_contexts_lock = threading.Lock()

os.register_at_fork(after_in_child=_forget_in_child)
