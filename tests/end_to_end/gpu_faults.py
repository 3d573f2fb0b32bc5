"""What can fail of a GPU that lends, and what is promised then: rows of the README's table.

Covers how each thing is made to fail on a node of fake GPUs, and what must be said and done about
it; `test_gpu_faults` does it and looks.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from tests.fakes.cuda_node import FakeCudaNode
from tests.fakes.fake_cuda.results import CUresult


@dataclass(frozen=True, kw_only=True)
class GpuFault:
    """One thing that fails on the GPU of a lender."""

    what: str  # as the README says it
    strike: Callable[[FakeCudaNode, str, int], None]  # the node, the GPU, and its keeper
    mend: Callable[[FakeCudaNode, str], None]
    words: str  # in status, in `handle.reason` and in LeaseLost
    loses: bool  # what lay there; its keeper has ended
    afterwards: str  # as the README says it

    def cells(self) -> list[str]:
        """The row as it stands in the README."""
        fetch = "`LeaseLost`" if self.loses else "works"
        return [self.what, fetch, f"`{self.words}`", self.afterwards]


def _kill(_machine: FakeCudaNode, _gpu: str, keeper: int) -> None:
    os.kill(keeper, signal.SIGKILL)


def _dead_context(by: str, code: CUresult) -> GpuFault:
    return GpuFault(
        what=f"a keeper's context dies by an error of {by}",
        strike=lambda machine, _gpu, keeper: machine.kill_context(int(code), pid=keeper),
        mend=_forget_order,
        words=code.name,
        loses=True,
        afterwards=_NEXT_KEEPER,
    )


def _nothing(_machine: FakeCudaNode, _gpu: str) -> None:
    pass


def _forget_order(machine: FakeCudaNode, _gpu: str) -> None:
    machine.fail("any", None)


_NEXT_KEEPER = "the next keeper lends; a second end within an hour has it rest"
FAULTS = (
    GpuFault(
        what="a keeper is killed",
        strike=_kill,
        mend=_nothing,
        words="has ended",
        loses=True,
        afterwards=_NEXT_KEEPER,
    ),
    _dead_context("the memory", CUresult.CUDA_ERROR_ECC_UNCORRECTABLE),
    _dead_context("NVLink", CUresult.CUDA_ERROR_NVLINK_UNCORRECTABLE),
    GpuFault(
        what="the GPU falls off the bus (Xid 79)",
        strike=lambda machine, gpu, _keeper: machine.remove_gpu(gpu),
        mend=lambda machine, gpu: machine.return_gpu(gpu),
        words="is lost",
        loses=True,
        afterwards="lent again when NVML finds it again",
    ),
    GpuFault(
        what="NVML does not answer",
        strike=lambda machine, gpu, _keeper: machine.stall_nvml(gpu),
        mend=lambda machine, gpu: machine.resume_nvml(gpu),
        words="NVML has not answered for",
        loses=False,
        afterwards="lent again when it answers",
    ),
)
