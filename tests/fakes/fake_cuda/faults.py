"""Calls that fail as a test has ordered, and contexts that are dead for good.

An order is a file of the node, so that running processes see it at once. It names a function (or
any), the code, and as far as wanted the GPU whose context is current, the process, and at which of
each process's calls it begins. A *sticky* one kills the context that it strikes: from then on
every call there ends with its code, as CUDA does until the process has ended.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.fakes.fake_cuda.results import CUresult, Failed

ANY_CALL = "any"
_LOOK_SECONDS = 0.01
# They need no driver, and never fail.
WITHOUT_DRIVER = frozenset({"cuInit", "cuGetErrorName", "cuGetErrorString", "cuDriverGetVersion"})
# They touch no context's work: the driver answers them whatever has happened there.
_WITHOUT_CONTEXT = (
    *("cuCtxSetCurrent", "cuCtxGetCurrent", "cuCtxPushCurrent", "cuCtxPopCurrent"),
    *("cuCtxGetDevice", "cuDeviceGet", "cuDevicePrimaryCtx", "cuThreadExchange"),
)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One order."""

    code: int
    is_sticky: bool = False
    gpu: str = ""  # calls in contexts of this GPU alone
    pid: int = 0  # calls of this process alone
    first_call: int = 1  # of each process, of those that the order is about
    times: int = 0  # so often; 0: from then on
    hangs: bool = False  # instead of failing it does not come back, until the order is taken back
    order: str = field(default_factory=lambda: uuid.uuid4().hex)

    def write(self, path: Path) -> None:
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(asdict(self)))
        fresh.rename(path)

    @classmethod
    def read(cls, path: Path) -> Fault | None:
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None


@dataclass(kw_only=True)
class Faults:
    """What has struck this process."""

    directory: Path
    dead: dict[int | None, CUresult] = field(default_factory=dict)  # by ordinal; None: everywhere
    _calls: Counter[str] = field(default_factory=Counter)

    def check_in(self, name: str, *, ordinal: int | None, gpu: str) -> None:
        """Raise what the call ends with, before it has done anything."""
        for wanted in (name, ANY_CALL):
            fault = Fault.read(self.directory / wanted)
            is_meant = (
                fault is not None and fault.gpu in {"", gpu} and fault.pid in {0, os.getpid()}
            )
            if fault is None or not is_meant or (wanted == ANY_CALL and _is_context_free(name)):
                continue
            self._calls[fault.order] += 1
            number = self._calls[fault.order] - fault.first_call
            if number >= 0 and (not fault.times or number < fault.times):
                if fault.hangs:
                    _hang(self.directory / wanted)
                    return
                if fault.is_sticky:
                    self.dead.setdefault(ordinal, CUresult(fault.code))
                raise Failed(CUresult(fault.code))
        if not _is_context_free(name):
            self.raise_dead(ordinal)

    def raise_dead(self, ordinal: int | None) -> None:
        """Raise the code of a context that is dead."""
        code = self.dead.get(ordinal) or self.dead.get(None)
        if code:
            raise Failed(code)


def _hang(order: Path) -> None:
    while order.exists():
        threading.Event().wait(_LOOK_SECONDS)


def _is_context_free(name: str) -> bool:
    return name.startswith(_WITHOUT_CONTEXT)
