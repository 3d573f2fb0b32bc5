"""What a fake node is: its GPUs, how they are linked, and how its driver behaves where it may.

One JSON file in the node's folder; it never changes while the node is used. What changes is in
registry.py.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

MIB = 1 << 20
GIB = 1 << 30
NODE_FILE = "node.json"

FreedHandle = Literal["fails", "aliases"]
ExporterDeath = Literal["mapping_stays", "mapping_ends"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuDescription:
    """One GPU as NVML and the driver tell of it."""

    uuid: str
    name: str
    memory_bytes: int
    pci_bus_id: str  # as NVML writes it: 00000000:1B:00.0
    numa_node: int = 0
    cpus: str = "0-47"
    compute_capability: tuple[int, int] = (9, 0)
    mig: bool = False
    compute_mode: Literal["default", "prohibited", "exclusive_process"] = "default"
    ecc: bool | None = True  # None: a GPU that cannot
    ecc_pending: bool | None = None  # after the next reset; None: as it is
    throttle_reasons: int = 0
    sm_clock_mhz: int = 1980
    memory_clock_mhz: int = 2619
    nvlink_version: int = 4  # 0: none
    pcie_generation: int = 5
    uncorrected_ecc_errors: int = 0
    utilization_percent: int = 0
    persistence: bool = True
    rows_exhausted: bool = False  # none is left to remap to
    nvlinks_down: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDescription:
    """A node: GPUs in NVML's order, their links, and the driver's choices."""

    gpus: tuple[GpuDescription, ...]
    links: tuple[tuple[str, ...], ...]  # [i][j]: X, NV18, PIX, PXB, PHB, NODE, SYS
    peers: tuple[tuple[str, ...], ...]  # [i][j]: OK, CNS, GNS, TNS, NS as nvidia-smi writes it
    nvswitch: bool = False
    fabric_state: int = 0  # as NVML numbers them; 0: the GPUs belong to none
    cuda_order: tuple[int, ...] = ()  # CUDA's ordinal -> NVML's index; empty: the same
    driver_version: str = "580.95.05"
    cuda_version: int = 13000
    context_bytes: int = 500 * MIB
    first_use_bytes: int = 0  # what a context grows by at its first fill
    system_bytes: int = 0  # what NVML calls used on an idle GPU
    freed_handle: FreedHandle = "fails"
    exporter_death: ExporterDeath = "mapping_stays"
    leftovers: bool = True  # a new allocation shows the bytes of a freed one
    mps: bool = False
    stream_delay_seconds: float = 0.0  # each asynchronous copy waits so long; 0: done at once

    def index_of(self, uuid: str) -> int:
        return next(index for index, gpu in enumerate(self.gpus) if gpu.uuid == uuid)

    def write(self, directory: Path) -> None:
        (directory / NODE_FILE).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, directory: Path) -> NodeDescription:
        fields = json.loads((directory / NODE_FILE).read_text())
        gpus = [
            GpuDescription(
                **{
                    **gpu,
                    "compute_capability": tuple(gpu["compute_capability"]),
                    "nvlinks_down": tuple(gpu["nvlinks_down"]),
                }
            )
            for gpu in fields.pop("gpus")
        ]
        links, peers = _rows(fields.pop("links")), _rows(fields.pop("peers"))
        order = tuple(fields.pop("cuda_order"))
        return cls(gpus=tuple(gpus), links=links, peers=peers, cuda_order=order, **fields)


def _rows(rows: list[list[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(row) for row in rows)
