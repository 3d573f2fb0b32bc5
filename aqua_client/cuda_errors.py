"""What the CUDA driver refuses, by name, and what that means for whoever reads it."""

from __future__ import annotations

from typing import Any

from aqua_client.errors import AquaError

# The context went first, and took with it what was mapped or pinned in it.
CONTEXT_GONE = frozenset({"CUDA_ERROR_DEINITIALIZED", "CUDA_ERROR_CONTEXT_IS_DESTROYED"})
# Remedies for what a user can do something about; the driver's own words for the rest.
_REMEDIES = {
    "CUDA_ERROR_OUT_OF_MEMORY": "free device memory on this process's own GPU",
    "CUDA_ERROR_INVALID_CONTEXT": "the memory was made in this very process, or another PID "
    "namespace uses the same process id: share the host's (hostPID)",
    "CUDA_ERROR_NOT_INITIALIZED": "CUDA does not work in a forked child: start it with spawn",
    "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED": "the two GPUs can't reach each other",
    "CUDA_ERROR_NO_DEVICE": "no GPU is visible: check CUDA_VISIBLE_DEVICES and the container",
}
# What ends a context for good, and with it all that this process does on the GPU.
_DEADLY = frozenset(
    f"CUDA_ERROR_{name}"
    for name in (
        *("ASSERT", "CONTAINED", "ECC_UNCORRECTABLE", "EXTERNAL_DEVICE", "HARDWARE_STACK_ERROR"),
        *("ILLEGAL_ADDRESS", "ILLEGAL_INSTRUCTION", "INVALID_ADDRESS_SPACE", "INVALID_PC"),
        *("LAUNCH_FAILED", "LAUNCH_TIMEOUT", "MISALIGNED_ADDRESS", "NVLINK_UNCORRECTABLE"),
    )
)
_DEAD = "this process's CUDA context is dead, and what it has mapped goes back when it ends"


class CudaError(AquaError):
    """The driver refused: `NAME: explanation`. Never leaves the library."""

    def __init__(self, name: str, explanation: str) -> None:
        super().__init__(f"{name}: {explanation}")
        self.name = name


class CudaUnavailable(CudaError):
    """There is no driver to call in this process."""


def explained(bindings: Any, code: Any) -> tuple[str, str]:  # noqa: ANN401 - cuda-bindings has no types
    """The code's name, and what it means for whoever reads it."""
    name = getattr(code, "name", f"CUDA_ERROR_{int(code)}")
    if name in _REMEDIES:
        return name, _REMEDIES[name]
    found = bindings.cuGetErrorString(code)[1]
    text = found.decode() if isinstance(found, bytes) else f"code {int(code)}"
    return name, f"{text}; {_DEAD}" if name in _DEADLY else text
