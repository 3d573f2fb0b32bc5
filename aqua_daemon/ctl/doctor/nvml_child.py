"""`python -m aqua_daemon.ctl.doctor.nvml_child [LEFT_OUT...]`: what NVML says, a line of JSON each.

A process of its own, because NVML can hang on a sick GPU, for ever and where no signal gets through.
It says which GPU it is about to ask, so that whoever stops listening knows the one that hangs; each
is asked of itself first, then of its links to those that have answered.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from typing import Any

_COMPUTE_MODES = {0: "default", 1: "exclusive", 2: "prohibited", 3: "exclusive"}
_ACCESS = ("OK", "CNS", "GNS", "TNS", "DR", "NS")
_DISTANCES = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE"}
_FABRIC = {1: "not started", 2: "in progress", 3: "completed"}
_P2P_READ = 0  # pynvml has (0,) under that name
_NUMA_WORDS, _WORD_BITS = 2, 64


def main(left_out: list[str]) -> int:
    """Ask about the driver, then about each GPU whose index is not *left_out*."""
    import pynvml

    try:
        pynvml.nvmlInit()
        library = _text(pynvml.nvmlSystemGetDriverVersion())
        count = int(pynvml.nvmlDeviceGetCount())
    except (pynvml.NVMLError, OSError) as error:
        _say(trouble=f"NVML does not work: {error}")
        return 1
    asked = _Asked(pynvml)
    cuda = asked.optional(pynvml.nvmlSystemGetCudaDriverVersion) or 0
    _say(library=library, cuda_version=int(cuda))
    answering = []
    for index in range(count):
        if str(index) not in left_out:
            _say(asking=index)
            found = asked.gpu(index)
            _say(gpu=found)
            answering += [] if "trouble" in found else [index]
    for index in answering:
        _say(asking=index)
        _say(links=asked.links(index, answering))
    return 0


class _Asked:
    """One GPU's answers. What it does not tell is left out; what it fails to, is told."""

    def __init__(self, nvml: Any) -> None:  # noqa: ANN401 - a module without annotations
        self._nvml = nvml

    def gpu(self, index: int) -> dict[str, object]:
        """As the fields of `Gpu`."""
        nvml, uuid = self._nvml, f"number {index}"
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = _text(nvml.nvmlDeviceGetUUID(handle))
            return {
                "uuid": uuid,
                **self._settings(handle),
                **self._memory(handle),
                **self._nvlinks(handle),
            }
        except nvml.NVMLError as error:
            return {"uuid": uuid, "trouble": f"NVML: {error}"}

    def links(self, index: int, answering: list[int]) -> list[dict[str, object]]:
        """To each of the others, as the fields of `PeerLink`; none to one that was lost meanwhile."""
        nvml = self._nvml
        found = []
        for other in answering:
            if other != index:
                try:
                    found.append(self._link(index, other))
                except nvml.NVMLError:
                    continue
        return found

    def optional(self, call: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - as NVML has it
        """What the call says; None where this GPU or driver does not know it.

        Raises:
            NVMLError: the GPU is lost, or there is no NVML any more.
        """
        nvml = self._nvml
        try:
            return call(*arguments)
        except (nvml.NVMLError_GpuIsLost, nvml.NVMLError_Uninitialized):
            raise
        except (nvml.NVMLError, nvml.NVMLLibraryMismatchError):
            return None

    def _settings(self, handle: object) -> dict[str, object]:
        nvml = self._nvml
        mig = self.optional(nvml.nvmlDeviceGetMigMode, handle)
        persistence = self.optional(nvml.nvmlDeviceGetPersistenceMode, handle)
        words = self.optional(
            nvml.nvmlDeviceGetMemoryAffinity, handle, _NUMA_WORDS, nvml.NVML_AFFINITY_SCOPE_NODE
        )
        bits = sum(int(word) << (_WORD_BITS * at) for at, word in enumerate(words or ()))
        mode = nvml.nvmlDeviceGetComputeMode(handle)
        return {
            "model": _text(nvml.nvmlDeviceGetName(handle)),
            "minor": self.optional(nvml.nvmlDeviceGetMinorNumber, handle),
            "mig": None if mig is None else bool(mig[0]),
            "compute_mode": _COMPUTE_MODES.get(mode, "of an unknown kind"),
            "persistence": None if persistence is None else bool(persistence),
            "numa_node": (bits & -bits).bit_length() - 1 if bits else None,
        }

    def _memory(self, handle: object) -> dict[str, object]:
        nvml = self._nvml
        ecc = self.optional(nvml.nvmlDeviceGetEccMode, handle)
        errors = self.optional(
            nvml.nvmlDeviceGetTotalEccErrors,
            handle,
            nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC,
        )
        rows = self.optional(nvml.nvmlDeviceGetRemappedRows, handle)
        pages = self.optional(nvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)
        return {
            "ecc": None if ecc is None else bool(ecc[0]),
            "uncorrected_errors": errors,
            "repair_pending": bool(pages) or bool(rows and rows[2]),
            "repair_failed": bool(rows and rows[3]),
        }

    def _nvlinks(self, handle: object) -> dict[str, object]:
        nvml = self._nvml
        states = {
            link: self.optional(nvml.nvmlDeviceGetNvLinkState, handle, link)
            for link in range(nvml.NVML_NVLINK_MAX_LINKS)
        }
        up = [link for link, state in states.items() if state]
        ends = [self.optional(nvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, one) for one in up]
        info = nvml.c_nvmlGpuFabricInfo_t()
        self.optional(nvml.nvmlDeviceGetGpuFabricInfo, handle, ctypes.byref(info))
        return {
            "nvlinks": len(up),
            "nvlinks_to_switch": ends.count(nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH),
            "fabric": _FABRIC.get(int(info.state), ""),
        }

    def _link(self, index: int, other: int) -> dict[str, object]:
        nvml = self._nvml
        here, there = (nvml.nvmlDeviceGetHandleByIndex(one) for one in (index, other))
        status = self.optional(nvml.nvmlDeviceGetP2PStatus, here, there, _P2P_READ)
        by_nvlink = self.optional(
            nvml.nvmlDeviceGetP2PStatus, here, there, nvml.NVML_P2P_CAPS_INDEX_NVLINK
        )
        level = self.optional(nvml.nvmlDeviceGetTopologyCommonAncestor, here, there)
        return {
            "peer": _text(nvml.nvmlDeviceGetUUID(there)),
            "kind": "NV" if by_nvlink == 0 else _DISTANCES.get(level, "SYS"),
            "access": _ACCESS[status] if status in range(len(_ACCESS)) else "",
        }


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
