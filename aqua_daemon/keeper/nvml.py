"""The keeper's door to NVML: what there is on this node, by UUID.

The keeper's only importer of `pynvml`, and late. NVML makes no context and needs none, but a
call can hang on a sick GPU: it belongs into a thread (`nvml_reader`) or a process of its own
(`listing`), never into a loop. What follows from its word is `inventory`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

from aqua_daemon.keeper.inventory import Identity, Link, Reading, Repair

_MPS_SERVER = "nvidia-cuda-mps-server"
_P2P_READ = 0  # NVML_P2P_CAPS_INDEX_READ; pynvml has (0,) under that name
_NUMA_WORDS = 2  # 128 nodes
_WORD_BITS = 64
_T = TypeVar("_T")


class NvmlError(Exception):
    """NVML failed or is not there, in its words."""


class GpuLost(NvmlError):
    """It fell off the bus: what it held is gone."""


class Nvml:
    """An open NVML. From one thread at a time."""

    def __init__(self) -> None:
        """Raises NvmlError: there is no library, or no driver behind it."""
        try:
            import pynvml
        except ImportError as error:
            msg = f"{error}; install nvidia-ml-py"
            raise NvmlError(msg) from error
        self._nvml: Any = pynvml
        # The second is no NVMLError: a function that this driver's library does not have.
        self._errors = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError)
        self._told("start", pynvml.nvmlInit)

    def uuids(self) -> tuple[str, ...]:
        """Of every GPU of the node that answers, in NVML's order. Raises NvmlError."""
        found = (self._uuid_at(index) for index in range(self.count()))
        return tuple(uuid for uuid in found if uuid is not None)

    def count(self) -> int:
        """How many GPUs there are, those that are lost among them. Raises NvmlError."""
        return int(self._told("count GPUs", self._nvml.nvmlDeviceGetCount))

    def identity(self, uuid: str) -> Identity:
        """What does not change. Raises NvmlError."""
        handle = self._handle(uuid)
        model = self._told("name its model", self._nvml.nvmlDeviceGetName, handle)
        return Identity(
            uuid=uuid,
            model=_text(model),
            numa_node=self._numa_node(handle),
            links=self._links(uuid),
        )

    def reading(self, uuid: str) -> Reading:
        """How it is now. Raises NvmlError."""
        nvml, handle = self._nvml, self._handle(uuid)
        memory = self._told("read its memory", nvml.nvmlDeviceGetMemoryInfo, handle)
        processes = self._processes(handle)
        mig = self._optional(nvml.nvmlDeviceGetMigMode, handle)
        mode = self._optional(nvml.nvmlDeviceGetComputeMode, handle)
        ecc = self._hint(nvml.nvmlDeviceGetEccMode, handle)
        return Reading(
            total_bytes=int(memory.total),
            # What is not free, rather than `used`: versions differ in whether that has the driver's.
            used_bytes=int(memory.total) - int(memory.free),
            process_bytes=processes,
            has_mig=mig is not None and mig[0] == nvml.NVML_DEVICE_MIG_ENABLE,
            compute_mode=self._compute_mode(mode),
            has_ecc=None if ecc is None else bool(ecc[0]),
            memory_repair=self._memory_repair(handle),
            mps_users=self._mps_users(handle, processes),
            sm_clock_mhz=self._hint(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM) or 0,
            memory_clock_mhz=self._hint(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM)
            or 0,
            slowed_by=self._slowed_by(handle),
        )

    def close(self) -> None:
        """Let go of NVML. Called once."""
        self._told("stop", self._nvml.nvmlShutdown)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _handle(self, uuid: str) -> Any:  # noqa: ANN401 - an opaque pointer
        return self._told("find it", self._nvml.nvmlDeviceGetHandleByUUID, uuid)

    def _uuid_at(self, index: int) -> str | None:
        nvml = self._nvml
        try:
            return _text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index)))
        except nvml.NVMLError_GpuIsLost:
            return None  # one that is gone hides no other
        except nvml.NVMLError as error:
            msg = f"NVML can't name GPU {index}: {error}"
            raise NvmlError(msg) from error

    def _processes(self, handle: object) -> dict[int, int]:
        nvml = self._nvml
        found: dict[int, int] = {}
        for running in (
            nvml.nvmlDeviceGetComputeRunningProcesses,
            nvml.nvmlDeviceGetGraphicsRunningProcesses,
        ):
            for process in self._optional(running, handle) or ():
                used_bytes = process.usedGpuMemory or 0  # None in a container, and under MIG
                found[int(process.pid)] = max(found.get(int(process.pid), 0), int(used_bytes))
        return found

    def _mps_users(self, handle: object, processes: dict[int, int]) -> frozenset[int | None] | None:
        names = {
            pid: self._hint(self._nvml.nvmlSystemGetProcessName, pid) or "" for pid in processes
        }
        servers = {pid for pid, name in names.items() if _text(name).endswith(_MPS_SERVER)}
        if not servers:
            return None
        clients = self._optional(self._nvml.nvmlDeviceGetMPSComputeRunningProcesses, handle) or ()
        # Without a list of its own, whoever is there but the server and this keeper, which never is.
        pids = {int(client.pid) for client in clients} or processes.keys() - servers - {os.getpid()}
        return frozenset(_uid(pid) for pid in pids)

    def _memory_repair(self, handle: object) -> Repair:
        rows = self._hint(self._nvml.nvmlDeviceGetRemappedRows, handle)
        if rows is not None:
            _corrected, _uncorrected, is_pending, has_failed = rows
        else:  # models before Ampere retire pages
            has_failed = False
            is_pending = self._hint(self._nvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)
        return Repair.FAILED if has_failed else Repair.PENDING if is_pending else Repair.NONE

    def _compute_mode(self, mode: int | None) -> str:
        names = ("DEFAULT", "EXCLUSIVE_THREAD", "PROHIBITED", "EXCLUSIVE_PROCESS")
        known = {getattr(self._nvml, f"NVML_COMPUTEMODE_{name}"): name for name in names}
        return "DEFAULT" if mode is None else known.get(mode, f"mode {mode}")

    def _slowed_by(self, handle: object) -> tuple[str, ...]:
        nvml = self._nvml
        reasons = self._hint(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
        harmful = {
            nvml.nvmlClocksThrottleReasonHwSlowdown: "the hardware",
            nvml.nvmlClocksThrottleReasonHwThermalSlowdown: "heat",
            nvml.nvmlClocksThrottleReasonSwThermalSlowdown: "heat, by the driver",
            nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "its power supply",
        }
        return tuple(name for bit, name in harmful.items() if reasons & bit)

    def _numa_node(self, handle: object) -> int | None:
        nvml = self._nvml
        words = self._hint(
            nvml.nvmlDeviceGetMemoryAffinity, handle, _NUMA_WORDS, nvml.NVML_AFFINITY_SCOPE_NODE
        )
        bits = sum(int(word) << (_WORD_BITS * at) for at, word in enumerate(words or ()))
        return (bits & -bits).bit_length() - 1 if bits else None

    def _links(self, uuid: str) -> tuple[Link, ...]:
        handle = self._handle(uuid)
        to_switch, to_bus = self._nvlinks(handle)
        links = []
        for peer in self.uuids():
            if peer != uuid:
                there = self._handle(peer)
                bus = self._bus(
                    self._told("find it on PCIe", self._nvml.nvmlDeviceGetPciInfo, there)
                )
                count = to_bus[bus] or (to_switch if self._reaches_by_nvlink(handle, there) else 0)
                kind = "NV" if count else self._distance(handle, there)
                has_access = self._p2p(handle, there, _P2P_READ)
                links.append(Link(peer=peer, kind=kind, count=count, has_peer_access=has_access))
        return tuple(links)

    def _nvlinks(self, handle: object) -> tuple[int, Counter[str]]:
        """How many active ones go to a switch, and how many to each other GPU by its bus id."""
        nvml = self._nvml
        to_switch, to_bus = 0, Counter[str]()
        for link in range(nvml.NVML_NVLINK_MAX_LINKS):
            if not self._hint(nvml.nvmlDeviceGetNvLinkState, handle, link):
                continue
            kind = self._hint(nvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link)
            if kind == nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
                to_switch += 1
                continue
            remote = self._hint(nvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
            if remote is not None:
                to_bus[self._bus(remote)] += 1
        return to_switch, to_bus

    def _reaches_by_nvlink(self, handle: object, there: object) -> bool:
        return self._p2p(handle, there, self._nvml.NVML_P2P_CAPS_INDEX_NVLINK)

    def _p2p(self, handle: object, there: object, capability: int) -> bool:
        status = self._hint(self._nvml.nvmlDeviceGetP2PStatus, handle, there, capability)
        return bool(status == self._nvml.NVML_P2P_STATUS_OK)

    def _distance(self, handle: object, there: object) -> str:
        nvml = self._nvml
        names = {
            nvml.NVML_TOPOLOGY_INTERNAL: "PIX",  # two GPUs of one board
            nvml.NVML_TOPOLOGY_SINGLE: "PIX",
            nvml.NVML_TOPOLOGY_MULTIPLE: "PXB",
            nvml.NVML_TOPOLOGY_HOSTBRIDGE: "PHB",
            nvml.NVML_TOPOLOGY_NODE: "NODE",
        }
        level = self._hint(nvml.nvmlDeviceGetTopologyCommonAncestor, handle, there)
        return names.get(level, "SYS")

    def _bus(self, pci: Any) -> str:  # noqa: ANN401 - a structure of pynvml
        return _text(pci.busId).lower()

    def _told(self, what: str, call: Callable[..., _T], *arguments: object) -> _T:
        try:
            return call(*arguments)
        except self._errors as error:
            raise self._translated(f"NVML can't {what}: {error}", error) from error

    def _optional(self, call: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
        """What the call says, or None where this GPU, driver or container does not tell.

        Raises:
            NvmlError: the GPU is lost, or NVML is, or it is not known why there is no answer.
        """
        nvml = self._nvml
        try:
            return call(*arguments)
        except (
            nvml.NVMLError_NotSupported,
            nvml.NVMLError_NoPermission,
            nvml.NVMLError_InvalidArgument,  # a link that this model does not have
            nvml.NVMLError_FunctionNotFound,
            nvml.NVMLError_NotFound,  # a process that has just ended
            nvml.NVMLLibraryMismatchError,  # how it says of some that they are not found
        ):
            return None
        except nvml.NVMLError as error:
            raise self._translated(f"NVML: {error}", error) from error

    def _hint(self, call: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
        """The same for what decides nothing: whatever else is wrong with it is no answer either.

        A link that is down or a sensor that is not ready keeps no GPU from being lent.

        Raises:
            NvmlError: the GPU is lost, or NVML is.
        """
        nvml = self._nvml
        try:
            return call(*arguments)
        except (
            nvml.NVMLError_GpuIsLost,
            nvml.NVMLError_Uninitialized,
            nvml.NVMLError_DriverNotLoaded,
        ) as error:
            raise self._translated(f"NVML: {error}", error) from error
        except self._errors:
            return None

    def _translated(self, message: str, error: Exception) -> NvmlError:
        is_lost = isinstance(error, self._nvml.NVMLError_GpuIsLost)
        return GpuLost(message) if is_lost else NvmlError(message)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _uid(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None
