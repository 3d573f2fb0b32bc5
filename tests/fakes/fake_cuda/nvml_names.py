"""The whole fake NVML under the names of `pynvml`, as `cuda_site/pynvml.py` shows it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType

from tests.fakes.fake_cuda import nvml, nvml_links
from tests.fakes.fake_cuda.nvml_real import fail, real

# They work on errors and structures alone, and never ask the library.
_PURE = ("nvmlExceptionClass", "nvmlStructToFriendlyObject", "nvmlFriendlyObjectToStruct")


def names() -> dict[str, object]:
    """All public names: the real constants and errors, our functions, and refusals for the rest."""
    public = {name: value for name, value in vars(real).items() if not name.startswith("_")}
    for name, value in public.items():
        if name.startswith("nvml") and isinstance(value, FunctionType) and name not in _PURE:
            public[name] = _refusal(value)
    return public | answered()


def answered() -> dict[str, Callable[..., object]]:
    """The functions that the fake answers."""
    return {
        name: value
        for module in (nvml, nvml_links)
        for name, value in vars(module).items()
        if name.startswith("nvml") and isinstance(value, FunctionType)
    }


def _refusal(function: FunctionType) -> Callable[..., object]:
    @functools.wraps(function)
    def refused(*_args: object, **_kwargs: object) -> object:
        fail("NOT_SUPPORTED")

    return refused
