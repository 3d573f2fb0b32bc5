"""What is asked of NVML, the installed module takes: over a library with no GPU behind it.

The made-up NVML answers in the module's place; here the module itself is asked, down to the C call that
it makes. What a real library answers is compared by `test_fakes_are_true`, where there is a device.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import pytest

from aqua_daemon.keeper.nvml import Nvml
from tests.fakes.fake_cuda.nvml_real import real

GPUS = 2
SUCCESS, NOT_SUPPORTED = 0, 3
MUST = frozenset(  # without these there is no GPU to speak of
    {
        "nvmlInitWithFlags",
        "nvmlShutdown",
        "nvmlDeviceGetCount_v2",
        "nvmlDeviceGetHandleByIndex_v2",
        "nvmlDeviceGetHandleByUUID",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetName",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetPciInfo_v3",
    }
)
_anything = ctypes.CDLL(
    None
).getpid  # a C function that minds no argument, once ctypes has taken it


class Library:
    """Two GPUs, of which every other question has one answer, and leaves what is asked for zero."""

    def __init__(self, code: int) -> None:
        self._code = code
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Callable[..., int]:
        """A function of the library."""

        def answer(*arguments: Any) -> int:  # noqa: ANN401 - of C
            _anything(*arguments)
            self.asked.add(name)
            self._fill(name, arguments)
            return SUCCESS if name in MUST else self._code

        return answer

    def _fill(self, name: str, arguments: tuple[Any, ...]) -> None:
        match name:
            case "nvmlDeviceGetCount_v2":
                arguments[0]._obj.value = GPUS
            case "nvmlDeviceGetHandleByIndex_v2":
                number = ctypes.c_void_p(arguments[0].value + 1)
                ctypes.memmove(ctypes.addressof(arguments[1]._obj), ctypes.addressof(number), 8)
            case "nvmlDeviceGetUUID":
                number = ctypes.cast(arguments[0], ctypes.c_void_p)
                arguments[1].value = f"GPU-{number.value}".encode()
            case _:
                pass


@pytest.mark.parametrize("code", [SUCCESS, NOT_SUPPORTED])
def test_all_that_a_keeper_asks(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Whether the other questions are answered or not supported: no call is refused by the module."""
    library = Library(code)
    monkeypatch.setitem(sys.modules, "pynvml", real)
    monkeypatch.setattr(real, "_LoadNvmlLibrary", lambda: None)
    monkeypatch.setattr(real, "nvmlLib", library)
    monkeypatch.setattr(real, "_nvmlGetFunctionPointer_cache", {})
    with Nvml() as nvml:
        assert nvml.uuids() == ("GPU-1", "GPU-2")
        identity, reading = nvml.identity("GPU-1"), nvml.reading("GPU-1")
    (link,) = identity.links
    assert (link.peer, link.has_peer_access) == ("GPU-2", code == SUCCESS)
    assert (reading.has_mig, reading.compute_mode) == (False, "DEFAULT")
    assert {
        "nvmlDeviceGetP2PStatus",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetEccMode",
    } < library.asked


def test_what_the_module_does_not_take_is_seen() -> None:
    """It has a tuple for the index of reading, by a slip; that no C function can be given."""
    with pytest.raises(ctypes.ArgumentError):
        Library(SUCCESS).nvmlDeviceGetP2PStatus(real.NVML_P2P_CAPS_INDEX_READ)
