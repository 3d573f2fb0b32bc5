"""Plain copies by size: in the GPU's memory, to mappings, and to host memory, pinned or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from tests.gpu.probe import kinds
from tests.gpu.probe.driver import DriverError, call, new_stream, stream_seconds, use_device
from tests.gpu.probe.findings import Findings
from tests.gpu.probe.names import KINDS
from tests.gpu.probe.plan import GIB, KIB, MIB, Plan
from tests.gpu.probe.stage import Devices, filled_slab, started

Copy = Callable[[int], object]  # enqueues a copy of so many bytes
WANTED_SECONDS = 0.02  # a figure is the mean over at least this long


def answer(plan: Plan, where: Devices, findings: Findings) -> None:
    use_device(where.borrower)
    most = max(2 * MIB, *plan.copy_sizes)
    found: dict[str, dict[int, float]] = {}
    with _copies(most, where) as (stream, ways):
        for name, copy in ways.items():
            found[name] = {nbytes: _rate(stream, copy, nbytes) for nbytes in plan.copy_sizes}
    findings.figures("GB/s by bytes (each byte counted once)", found)
    for name, rates in found.items():
        words = ", ".join(f"{_size(nbytes)} {rate:.3g}" for nbytes, rate in rates.items())
        findings.row(f"GB/s, {name}", words)


@contextmanager
def _copies(most: int, where: Devices) -> Iterator[tuple[object, dict[str, Copy]]]:
    """Every way, each over buffers of *most* bytes."""
    with ExitStack() as stack:
        stream = new_stream()
        one, other = (_device_buffer(stack, most) for _ in range(2))
        pinned, pageable = _pinned(stack, most), np.ones(most, dtype=np.uint8).ctypes
        ways: dict[str, Copy] = {
            "own memory to own": lambda n: call("cuMemcpyDtoDAsync", other, one, n, stream),
            "own to pinned host": lambda n: call("cuMemcpyDtoHAsync", pinned, one, n, stream),
            "pinned host to own": lambda n: call("cuMemcpyHtoDAsync", one, pinned, n, stream),
            "own to pageable host": lambda n: call(
                "cuMemcpyDtoHAsync", pageable.data, one, n, stream
            ),
            "pageable host to own": lambda n: call(
                "cuMemcpyHtoDAsync", one, pageable.data, n, stream
            ),
        }
        for kind in KINDS:
            mapped = _mapping(stack, kind, most, where)
            ways[f"own to {kind} slab"] = _copier(mapped, one, stream)
            ways[f"{kind} slab to own"] = _copier(one, mapped, stream)
        yield stream, ways


def _copier(target: int, source: int, stream: object) -> Copy:
    return lambda nbytes: call("cuMemcpyDtoDAsync", target, source, nbytes, stream)


def _device_buffer(stack: ExitStack, nbytes: int) -> int:
    pointer = int(call("cuMemAlloc", nbytes))
    stack.callback(call, "cuMemFree", pointer)
    call("cuMemsetD8", pointer, 1, nbytes)
    return pointer


def _pinned(stack: ExitStack, nbytes: int) -> int:
    pointer = int(call("cuMemHostAlloc", nbytes, 0))
    stack.callback(call, "cuMemFreeHost", pointer)
    return pointer


def _mapping(stack: ExitStack, kind: str, nbytes: int, where: Devices) -> int:
    keeper = stack.enter_context(started(where.lender))
    slab = filled_slab(keeper, kind=kind, nbytes=nbytes)
    ticket = keeper.export(slab, kind=kind, nbytes=nbytes)
    handle = bytes.fromhex(ticket.handle)
    held = kinds.open_exported(kind, nbytes, handle, ticket.descriptor, where.borrower, {})
    ticket.close()
    stack.callback(kinds.close, held, {})
    return held.pointer


def _rate(stream: object, copy: Copy, nbytes: int) -> float:
    try:
        once = max(stream_seconds(stream, lambda: copy(nbytes), repeats=2), 1e-7)
        repeats = min(1000, max(3, int(WANTED_SECONDS / once)))
        seconds = stream_seconds(stream, lambda: copy(nbytes), repeats=repeats)
    except DriverError:
        return 0.0
    return nbytes / max(seconds, 1e-9) / 1e9


def _size(nbytes: int) -> str:
    for unit, name in ((GIB, "G"), (MIB, "M"), (KIB, "K")):
        if nbytes >= unit:
            return f"{nbytes // unit}{name}"
    return str(nbytes)
