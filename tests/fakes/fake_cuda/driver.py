"""The whole fake driver under the names of `cuda.bindings.driver`."""

from __future__ import annotations

from tests.fakes.fake_cuda.contexts import *  # noqa: F403 - the module is its functions
from tests.fakes.fake_cuda.copies import *  # noqa: F403
from tests.fakes.fake_cuda.devices import *  # noqa: F403
from tests.fakes.fake_cuda.enums import *  # noqa: F403
from tests.fakes.fake_cuda.ipc import *  # noqa: F403
from tests.fakes.fake_cuda.kernels import *  # noqa: F403
from tests.fakes.fake_cuda.memory import *  # noqa: F403
from tests.fakes.fake_cuda.process import call_for_one
from tests.fakes.fake_cuda.results import CUresult, Failed
from tests.fakes.fake_cuda.streams import *  # noqa: F403
from tests.fakes.fake_cuda.structs import *  # noqa: F403
from tests.fakes.fake_cuda.vmm import *  # noqa: F403

CUDA_VERSION = 13000


@call_for_one
def cuGetErrorName(error: CUresult) -> bytes:
    if error not in set(CUresult):
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    return CUresult(error).name.encode()


@call_for_one
def cuGetErrorString(error: CUresult) -> bytes:
    if error not in set(CUresult):
        raise Failed(CUresult.CUDA_ERROR_INVALID_VALUE)
    return CUresult(error).name.removeprefix("CUDA_ERROR_").replace("_", " ").lower().encode()
