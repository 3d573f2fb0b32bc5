"""When a keeper has to give its context up: what the driver and NVML say, judged over time.

Only the end of the process gives the driver back what a dead context held, so to give up is to end,
and everything held there is lost. That must come at once when the context is dead, and never for a
call that merely failed. Where the words come from is `cuda_driver`'s and `nvml_reader`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from aqua_daemon.keeper.cuda_driver import CudaError

# What CUDA documents as the context's end: every later call there fails, in this process for good.
_ENDS = frozenset(
    f"CUDA_ERROR_{name}"
    for name in (
        "ASSERT",
        "CONTAINED",
        "CONTEXT_IS_DESTROYED",
        "DEINITIALIZED",
        "ECC_UNCORRECTABLE",
        "EXTERNAL_DEVICE",
        "HARDWARE_STACK_ERROR",
        "ILLEGAL_ADDRESS",
        "ILLEGAL_INSTRUCTION",
        "INVALID_ADDRESS_SPACE",
        "INVALID_PC",
        "LAUNCH_FAILED",
        "LAUNCH_TIMEOUT",
        "MISALIGNED_ADDRESS",
        "MPS_CLIENT_TERMINATED",
        "NVLINK_UNCORRECTABLE",
        "TENSOR_MEMORY_LEAK",
    )
)
# Any other word may pass. One that is said at so many looks in a row, a second apart, does not.
PATIENT_LOOKS = 3
LOST = "NVML says that the GPU is lost: dmesg -T | grep -i xid; it needs a reset or a reboot"


def ends_context(error: CudaError) -> bool:
    """Whether this is the end of the context that said it."""
    return error.name in _ENDS


@dataclass(slots=True, kw_only=True)
class Health:
    """Of one context, from its making to its end."""

    failure: str = ""  # why it has to be given up; empty: it need not
    _bad_looks: int = 0

    def failed(self, error: CudaError) -> None:
        """A call failed."""
        if ends_context(error):
            self.failure = self.failure or str(error)

    def looked(self, error: CudaError | None, *, is_lost: bool) -> None:
        """It was asked to do nothing, with this result; NVML calls the GPU lost, or does not."""
        if error is not None:
            self.failed(error)
        self._bad_looks = self._bad_looks + 1 if error is not None or is_lost else 0
        if self._bad_looks >= PATIENT_LOOKS:
            self.failure = self.failure or (LOST if is_lost else str(error))
