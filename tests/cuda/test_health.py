"""When a keeper gives its context up: at once, after a while, or not at all."""

from __future__ import annotations

import pytest

from aqua_daemon.keeper.cuda_driver import CudaError
from aqua_daemon.keeper.health import LOST, PATIENT_LOOKS, Health
from tests.fakes.fake_cuda.results import CUresult

DEAD = (
    CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,
    CUresult.CUDA_ERROR_ECC_UNCORRECTABLE,
    CUresult.CUDA_ERROR_LAUNCH_FAILED,
    CUresult.CUDA_ERROR_NVLINK_UNCORRECTABLE,
)


def said(code: CUresult) -> CudaError:
    return CudaError(code.name, "as the driver has it")


@pytest.mark.parametrize("code", DEAD, ids=lambda code: code.name)
def test_a_dead_context_is_given_up_at_its_first_word(code: CUresult) -> None:
    """Whether a call said it or a look."""
    for tell in (Health.failed, lambda one, error: one.looked(error, is_lost=False)):
        health = Health()
        tell(health, said(code))
        assert health.failure.startswith(f"{code.name}: ")


def test_what_may_pass_has_to_be_said_at_some_looks_in_a_row() -> None:
    """A call that failed, or two looks, and all that is held there stays."""
    health, unknown = Health(), said(CUresult.CUDA_ERROR_UNKNOWN)
    health.failed(unknown)
    for error in (unknown,) * (PATIENT_LOOKS - 1):
        health.looked(error, is_lost=False)
    health.looked(None, is_lost=False)
    for error in (unknown,) * (PATIENT_LOOKS - 1):
        health.looked(error, is_lost=False)
        assert health.failure == ""
    health.looked(unknown, is_lost=False)
    assert health.failure.startswith("CUDA_ERROR_UNKNOWN: ")


def test_a_gpu_that_nvml_calls_lost_is_given_up_whatever_the_driver_says() -> None:
    """It may say nothing; the words are NVML's, and name the log to look at."""
    health = Health()
    for _ in range(PATIENT_LOOKS):
        assert health.failure == ""
        health.looked(None, is_lost=True)
    assert health.failure == LOST
    assert "xid" in LOST


def test_the_first_word_stays() -> None:
    """What comes after it is only that everything fails."""
    health = Health()
    health.failed(said(CUresult.CUDA_ERROR_ECC_UNCORRECTABLE))
    health.looked(said(CUresult.CUDA_ERROR_LAUNCH_FAILED), is_lost=True)
    assert health.failure.startswith("CUDA_ERROR_ECC_UNCORRECTABLE: ")
