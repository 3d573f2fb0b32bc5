"""The installed pynvml, loaded beside the fake that bears its name.

Its constants, structures and errors need no driver, and taken from it they can't differ from it.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

_OURS = Path(__file__).resolve().parents[1] / "cuda_site"


def _load() -> ModuleType:
    places = [place for place in sys.path if Path(place).resolve() != _OURS]
    spec = importlib.machinery.PathFinder.find_spec("pynvml", places)
    if spec is None or spec.loader is None:
        raise ImportError("the fake NVML takes its constants from nvidia-ml-py: install it")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get("pynvml")
    sys.modules["pynvml"] = module  # it looks itself up by name while it is executed
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["pynvml"]
        if before is not None:
            sys.modules["pynvml"] = before
    return module


real = _load()


def fail(name: str) -> NoReturn:
    """Raise the error class of NVML_ERROR_<name>."""
    raise real.NVMLError(getattr(real, f"NVML_ERROR_{name}"))
