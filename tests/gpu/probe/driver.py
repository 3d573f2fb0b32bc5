"""The door to `cuda.bindings.driver`: a call either returns its values or raises what CUDA said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cuda.bindings import driver

from tests.gpu.probe.names import Times


class DriverError(Exception):
    """CUDA refused; the text is the name of its result."""


class NotOfferedError(DriverError):
    """This driver, or its Python module, has no such function."""


def call(name: str, *arguments: object) -> Any:  # noqa: ANN401 - the bindings have no types
    """The values of one driver call: none, one, or a tuple.

    Raises:
        DriverError: CUDA refused.
    """
    function = getattr(driver, name, None)
    if function is None:
        raise NotOfferedError(f"{name} is not offered")
    try:
        status, *values = function(*arguments)
    except RuntimeError as error:  # the module has the name, the driver on this machine has not
        raise NotOfferedError(f"{name}: {error}") from error
    if int(status) != 0:
        raise DriverError(status.name)
    return values[0] if len(values) == 1 else tuple(values)


def enum(kind: str, member: str) -> Any:  # noqa: ANN401 - the bindings have no types
    """One member of one of the driver's enumerations."""
    return getattr(getattr(driver, kind), member)


def struct(kind: str) -> Any:  # noqa: ANN401 - the bindings have no types
    """An empty structure of the driver's."""
    return getattr(driver, kind)()


@contextmanager
def timed(times: Times, name: str) -> Iterator[None]:
    """Note under *name* how many seconds the block took, also when it raises."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        times[name] = time.perf_counter() - begun


def device_count() -> int:
    """How many devices this process may use.

    Raises:
        DriverError: there is no driver.
    """
    call("cuInit", 0)
    return int(call("cuDeviceGetCount"))


def uuid_of(ordinal: int) -> str:
    """The device's name that NVML knows too."""
    raw = bytes(call("cuDeviceGetUuid", call("cuDeviceGet", ordinal)).bytes).hex()
    return f"GPU-{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}"


def attribute(name: str, ordinal: int) -> int:
    """A `CU_DEVICE_ATTRIBUTE_` by the rest of its name."""
    wanted = enum("CUdevice_attribute", f"CU_DEVICE_ATTRIBUTE_{name}")
    return int(call("cuDeviceGetAttribute", wanted, call("cuDeviceGet", ordinal)))


def use_device(ordinal: int, times: Times | None = None) -> None:
    """Make the device's primary context, and make it this thread's."""
    noted = {} if times is None else times
    with timed(noted, "init"):
        call("cuInit", 0)
    with timed(noted, "context"):
        context = call("cuDevicePrimaryCtxRetain", call("cuDeviceGet", ordinal))
        call("cuCtxSetCurrent", context)


def new_stream() -> Any:  # noqa: ANN401 - the bindings have no types
    """A stream that does not wait for the default one."""
    return call("cuStreamCreate", int(enum("CUstream_flags", "CU_STREAM_NON_BLOCKING")))


def stream_seconds(stream: object, work: object, *, repeats: int) -> float:
    """Seconds that one round of *work* (a callable) takes on the device, by events around all."""
    assert callable(work)
    begin, end = call("cuEventCreate", 0), call("cuEventCreate", 0)
    call("cuEventRecord", begin, stream)
    for _ in range(repeats):
        work()
    call("cuEventRecord", end, stream)
    call("cuEventSynchronize", end)
    seconds = float(call("cuEventElapsedTime", begin, end)) / 1e3 / repeats
    call("cuEventDestroy", begin)
    call("cuEventDestroy", end)
    return seconds
