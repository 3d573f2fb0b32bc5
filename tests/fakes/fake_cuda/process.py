"""What this process has of the driver: what is initialised, visible, current and mapped.

Covers the calling convention (`call*`): a function of the fake returns its values or raises
`Failed`; its caller gets a tuple that begins with a CUresult. Calls check in, so that a forked
child, a missing context or an ordered failure ends each of them alike.
"""

from __future__ import annotations

import functools
import os
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, SupportsInt, TypeVar

from tests.fakes.fake_cuda import pages
from tests.fakes.fake_cuda.books import Holder
from tests.fakes.fake_cuda.description import GpuDescription, NodeDescription
from tests.fakes.fake_cuda.faults import WITHOUT_DRIVER, Faults
from tests.fakes.fake_cuda.registry import Registry, this_holder
from tests.fakes.fake_cuda.results import CUresult, Failed

P = ParamSpec("P")
A = TypeVar("A")
B = TypeVar("B")
_FOLDER = "FAKE_CUDA_NODE"


@dataclass(kw_only=True)
class Span:
    """Device addresses of this process: an allocation of its own, or a mapping."""

    address: int
    nbytes: int
    requested_bytes: int
    number: int
    gpu: GpuDescription  # whose memory it is
    device: int  # whose context it belongs to
    kind: str  # own, import, vmm
    opened: int = 1
    readable: bool = True
    writable: bool = True
    handle: int = 0


@dataclass(kw_only=True)
class Node:
    """The node as this process sees it since cuInit."""

    registry: Registry
    holder: Holder
    visible: tuple[GpuDescription, ...]
    retained: dict[int, int] = field(default_factory=dict)  # ordinal -> references
    context_flags: dict[int, int] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)  # by address; replaced, never changed
    peers: set[tuple[int, int]] = field(default_factory=set)
    has_filled: set[int] = field(default_factory=set)  # ordinals
    faults: Faults

    def span_at(self, address: int) -> Span | None:
        spans = self.spans
        place = bisect_right(spans, address, key=lambda span: span.address) - 1
        if place < 0:
            return None
        span = spans[place]
        return span if address < span.address + span.nbytes else None

    def add_span(self, span: Span) -> None:
        place = bisect_right(self.spans, span.address, key=lambda other: other.address)
        self.spans = [*self.spans[:place], span, *self.spans[place:]]

    def remove_span(self, span: Span) -> None:
        self.spans = [other for other in self.spans if other is not span]


class _Thread(threading.local):
    def __init__(self) -> None:
        self.contexts: list[int | None] = [None]  # ordinals, the last is current
        self.capture_mode = 0


thread = _Thread()
lock = threading.RLock()  # over everything of this process
at_end: list[Callable[[], None]] = []  # what modules forget when a node is left
calls: Counter[str] = Counter()  # of this process, by name, as long as somebody looks
_node: Node | None = None
_is_forked = False


def initialise() -> None:
    """What cuInit does."""
    global _node  # noqa: PLW0603 - the driver has one state a process
    with lock:
        if _is_forked:
            raise Failed(CUresult.CUDA_ERROR_NOT_INITIALIZED)
        if _node is None:
            registry = Registry(_directory())
            visible = _visible(registry)
            if not visible:
                raise Failed(CUresult.CUDA_ERROR_NO_DEVICE)
            _node = Node(
                registry=registry,
                holder=this_holder(),
                visible=visible,
                faults=Faults(directory=registry.directory / "fail"),
            )


def end() -> None:
    """What a process's end does, while it lives on."""
    if _node is not None and not _is_forked:
        for clean in at_end:
            clean()
        for span in _node.spans:
            if span.kind != "vmm":
                pages.release(span.address, span.nbytes)
        with _node.registry.books() as books:
            books.drop_holders(_node.holder.__eq__)
    forget()


def forget() -> None:
    """Begin anew, as a new process would."""
    global _node, _is_forked  # noqa: PLW0603 - the driver has one state a process
    _node = None
    _is_forked = False
    thread.contexts = [None]
    thread.capture_mode = 0


def node() -> Node:
    if _node is None or _is_forked:
        raise Failed(CUresult.CUDA_ERROR_NOT_INITIALIZED)
    return _node


def described() -> NodeDescription:
    """The node of the environment, initialised or not."""
    return _node.registry.node if _node else NodeDescription.read(_directory())


def current_device() -> int:
    """The ordinal of the thread's current context."""
    ordinal = thread.contexts[-1]
    if ordinal is None or ordinal not in node().retained:
        raise Failed(CUresult.CUDA_ERROR_INVALID_CONTEXT)
    raise_sticky()
    return ordinal


def raise_sticky() -> None:
    node().faults.raise_dead(thread.contexts[-1])


def gpu_of(device: SupportsInt) -> GpuDescription:
    """The GPU of an ordinal, unless it is out of range or gone."""
    ordinal, visible = int(device), node().visible
    if ordinal >= len(visible):
        raise Failed(CUresult.CUDA_ERROR_INVALID_DEVICE)
    return visible[ordinal]


def require_alive(gpu: GpuDescription) -> None:
    if node().registry.is_lost(gpu.uuid):
        raise Failed(CUresult.CUDA_ERROR_UNKNOWN)


def call(function: Callable[P, None]) -> Callable[P, tuple[CUresult]]:
    """A driver call that returns nothing else."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> tuple[CUresult]:
        try:
            _check_in(function.__name__)
            function(*args, **kwargs)
        except Failed as failed:
            return (failed.code,)
        return (CUresult.CUDA_SUCCESS,)

    return called


def call_for_one(function: Callable[P, A]) -> Callable[P, tuple[CUresult, A | None]]:
    """A driver call with one more result, None when it fails."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> tuple[CUresult, A | None]:
        try:
            _check_in(function.__name__)
            return CUresult.CUDA_SUCCESS, function(*args, **kwargs)
        except Failed as failed:
            return failed.code, None

    return called


def call_for_two(
    function: Callable[P, tuple[A, B]],
) -> Callable[P, tuple[CUresult, A | None, B | None]]:
    """A driver call with two more results, None when it fails."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> tuple[CUresult, A | None, B | None]:
        try:
            _check_in(function.__name__)
            first, second = function(*args, **kwargs)
        except Failed as failed:
            return failed.code, None, None
        return CUresult.CUDA_SUCCESS, first, second

    return called


def _directory() -> Path:
    if _FOLDER not in os.environ:
        raise RuntimeError(f"the fake CUDA driver needs {_FOLDER}: the folder of its node")
    return Path(os.environ[_FOLDER])


def _check_in(name: str) -> None:
    calls[name] += 1
    if name in WITHOUT_DRIVER:
        return
    here, ordinal = node(), thread.contexts[-1]
    gpu = "" if ordinal is None else here.visible[ordinal].uuid
    here.faults.check_in(name, ordinal=ordinal, gpu=gpu)


def _visible(registry: Registry) -> tuple[GpuDescription, ...]:
    """CUDA's order, cut down by CUDA_VISIBLE_DEVICES, which ends at the first unknown name."""
    description = registry.node
    order = description.cuda_order or range(len(description.gpus))
    gpus = [description.gpus[index] for index in order]
    gpus = [gpu for gpu in gpus if not registry.is_lost(gpu.uuid)]
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return tuple(gpus)
    chosen: list[GpuDescription] = []
    for name in (part.strip() for part in wanted.split(",")):
        if name.isdigit():
            found = gpus[int(name) : int(name) + 1]
        else:
            found = [gpu for gpu in gpus if name and gpu.uuid.startswith(name)]
        if len(found) != 1 or found[0] in chosen:
            break
        chosen.extend(found)
    return tuple(chosen)


def _after_fork_in_child() -> None:
    """A child of a process with a driver has none, and keeps its parent's memory alive."""
    global lock, _is_forked  # noqa: PLW0603 - the driver has one state a process
    lock = threading.RLock()
    if _node is None:
        return
    _is_forked = True
    with _node.registry.books() as books:
        books.heirs.setdefault(_node.holder, []).append(this_holder())


os.register_at_fork(after_in_child=_after_fork_in_child)
