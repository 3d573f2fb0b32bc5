"""Whether this machine can run what needs a CUDA device, and if not, which part is missing.

Asked in a process of its own: a driver that crashes or hangs is an answer.
"""

from __future__ import annotations

import importlib
import subprocess
import sys

from tests.gpu.probe.running import REPOSITORY, child_environment

ASK_SECONDS = 120.0  # the first import of torch and the driver's waking on a cold machine
# What a node, a client and their tests import.
PACKAGES = {
    "pytest": "pytest",
    "numpy": "numpy",
    "torch": "torch",
    "cuda.bindings.driver": "cuda-bindings",
    "pynvml": "nvidia-ml-py",
    "grpc": "grpcio",
    "google.protobuf": "protobuf",
    "prometheus_client": "prometheus-client",
    "click": "click",
    "rich": "rich",
}


def why_not_here() -> str:
    """Why nothing that needs a GPU can be run here; empty if it can."""
    try:
        asked = subprocess.run(
            [sys.executable, "-m", "tests.gpu.readiness"],
            capture_output=True,
            text=True,
            timeout=ASK_SECONDS,
            check=False,
            cwd=REPOSITORY,
            env=child_environment(),
        )
    except subprocess.TimeoutExpired:
        return f"the driver does not answer within {ASK_SECONDS:g} s"
    if asked.returncode == 0:
        return asked.stdout.strip()
    return (asked.stderr.strip().splitlines() or ["the driver crashed"])[-1]


def missing() -> str:
    """The first part that is not there, in words; empty: all are."""
    for name, package in PACKAGES.items():
        try:
            importlib.import_module(name)
        except ImportError as error:
            return f"{package} is not installed ({error})"
    return _torch_without_cuda() or _no_device()


def _torch_without_cuda() -> str:
    import torch

    if torch.backends.cuda.is_built():
        return ""
    return f"this torch ({torch.__version__}) was built without CUDA"


def _no_device() -> str:
    import torch

    from tests.gpu.probe.driver import DriverError, device_count

    try:
        count = device_count()
    except DriverError as error:
        return f"there is no CUDA device: {error}"
    if not count:
        return "there is no CUDA device: the driver shows none"
    if not torch.cuda.is_available():
        return f"the driver shows {count} devices, but torch can use none of them"
    return ""


if __name__ == "__main__":
    print(missing())
