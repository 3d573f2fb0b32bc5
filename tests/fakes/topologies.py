"""Recorded nodes: GPUs, links, NUMA and peer access as people measured them on real machines.

UUIDs are made up and the same each time; names, sizes, links and NUMA nodes are not.
"""

from __future__ import annotations

import uuid
from dataclasses import replace

from tests.fakes.fake_cuda.description import MIB, GpuDescription, NodeDescription

H100 = "NVIDIA H100 80GB HBM3"
_H100_BYTES = 81559 * MIB
_SEED = uuid.UUID("6f0a5b0e-6a3c-4c8e-9d7a-1f2e3d4c5b6a")


def gpu(index: int, *, node: str, name: str, memory_bytes: int, bus: str) -> GpuDescription:
    """One GPU with a UUID of its own."""
    made = uuid.uuid5(_SEED, f"{node} {index}")
    return GpuDescription(
        uuid=f"GPU-{made}", name=name, memory_bytes=memory_bytes, pci_bus_id=f"00000000:{bus}:00.0"
    )


def hgx_h100(*, gpus: int = 8, memory_bytes: int = _H100_BYTES) -> NodeDescription:
    """HGX H100 SXM with NVSwitch: every pair NV18; GPUs 0-3 on NUMA node 0, 4-7 on node 1."""
    buses = ["1B", "43", "52", "61", "9D", "C3", "D1", "DF"]
    return NodeDescription(
        gpus=tuple(
            replace(
                gpu(index, node="hgx-h100", name=H100, memory_bytes=memory_bytes, bus=buses[index]),
                numa_node=index // 4,
                cpus="0-47,96-143" if index < 4 else "48-95,144-191",
            )
            for index in range(gpus)
        ),
        links=_all_pairs(gpus, "NV18"),
        peers=_all_pairs(gpus, "OK"),
        nvswitch=True,
    )


def dgx_a100() -> NodeDescription:
    """DGX A100 with NVSwitch: every pair NV12; GPUs 0-1 on NUMA node 3, 2-3 on 1, the rest apart."""
    buses = ["07", "0F", "47", "4E", "87", "90", "B7", "BD"]
    numa = [3, 3, 1, 1, 7, 7, 5, 5]
    return NodeDescription(
        gpus=tuple(
            replace(
                gpu(
                    index,
                    node="dgx-a100",
                    name="NVIDIA A100-SXM4-80GB",
                    memory_bytes=81920 * MIB,
                    bus=buses[index],
                ),
                numa_node=numa[index],
                cpus=f"{16 * numa[index]}-{16 * numa[index] + 15}",
                compute_capability=(8, 0),
                sm_clock_mhz=1410,
                memory_clock_mhz=1593,
                nvlink_version=3,
            )
            for index in range(8)
        ),
        links=_all_pairs(8, "NV12"),
        peers=_all_pairs(8, "OK"),
        nvswitch=True,
    )


def hgx_h100_four_numa() -> NodeDescription:
    """HGX H100 with NVSwitch and four NUMA nodes: GPUs 0-2 on node 0, 3 on 1, the others on 2 and 3."""
    node = hgx_h100()
    numa = [0, 0, 0, 1, 2, 2, 2, 3]
    gpus = [replace(each, numa_node=numa[at]) for at, each in enumerate(node.gpus)]
    return replace(node, gpus=tuple(gpus))


def a800() -> NodeDescription:
    """Eight A800 with NVSwitch: every pair NV8; GPUs 0-3 on NUMA node 0, 4-7 on node 1."""
    node = dgx_a100()
    gpus = [
        replace(each, name="NVIDIA A800-SXM4-80GB", numa_node=at // 4)
        for at, each in enumerate(node.gpus)
    ]
    return replace(node, gpus=tuple(gpus), links=_all_pairs(8, "NV8"))


def dgx_2() -> NodeDescription:
    """DGX-2, 16 V100 with NVSwitch: every pair NV6."""
    return NodeDescription(
        gpus=tuple(
            replace(
                gpu(
                    index,
                    node="dgx-2",
                    name="Tesla V100-SXM3-32GB",
                    memory_bytes=32510 * MIB,
                    bus=f"{0x34 + 2 * index:02X}",
                ),
                compute_capability=(7, 0),
                nvlink_version=2,
            )
            for index in range(16)
        ),
        links=_all_pairs(16, "NV6"),
        peers=_all_pairs(16, "OK"),
        nvswitch=True,
    )


def four_h100() -> NodeDescription:
    """Four H100 without a switch: each pair has six links of its own."""
    return replace(hgx_h100(gpus=4), links=_all_pairs(4, "NV6"), nvswitch=False)


def pcie_l40s() -> NodeDescription:
    """Four L40S without NVLink: pairs (0,1) and (2,3) NODE, across SYS; two NUMA nodes."""
    buses = ["01", "41", "81", "C1"]
    return NodeDescription(
        gpus=tuple(
            replace(
                gpu(
                    index,
                    node="l40s",
                    name="NVIDIA L40S",
                    memory_bytes=46068 * MIB,
                    bus=buses[index],
                ),
                numa_node=index // 2,
                cpus="0-31,64-95" if index < 2 else "32-63,96-127",
                compute_capability=(8, 9),
                sm_clock_mhz=2520,
                memory_clock_mhz=9001,
                nvlink_version=0,
            )
            for index in range(4)
        ),
        links=tuple(
            tuple(
                "X" if row == column else "NODE" if row // 2 == column // 2 else "SYS"
                for column in range(4)
            )
            for row in range(4)
        ),
        peers=_all_pairs(4, "OK"),
    )


def mixed_models() -> NodeDescription:
    """Seven GeForce and RTX cards of three models on one NUMA node: peers within a model only."""
    models = [("NVIDIA GeForce RTX 3090", 24576)] * 3
    models += [("NVIDIA GeForce RTX 4090", 24564)] * 2 + [("NVIDIA RTX A6000", 49140)] * 2
    return NodeDescription(
        gpus=tuple(
            replace(
                gpu(
                    index,
                    node="mixed",
                    name=name,
                    memory_bytes=mib * MIB,
                    bus=f"{0x21 + 0x20 * (index % 4) + index // 4:02X}",
                ),
                cpus="0-63",
                compute_capability=(8, 9) if "4090" in name else (8, 6),
                ecc=True if "A6000" in name else None,
                nvlink_version=0,
            )
            for index, (name, mib) in enumerate(models)
        ),
        links=_all_pairs(7, "PHB"),
        peers=tuple(
            tuple(
                "X" if row == column else "OK" if models[row] == models[column] else "CNS"
                for column in range(7)
            )
            for row in range(7)
        ),
    )


def two_rtx_5090() -> NodeDescription:
    """Two GeForce cards on one host bridge that refuse to be peers: not supported by the GPU."""
    return NodeDescription(
        gpus=tuple(
            replace(
                gpu(
                    index,
                    node="rtx-5090",
                    name="NVIDIA GeForce RTX 5090",
                    memory_bytes=32607 * MIB,
                    bus=bus,
                ),
                compute_capability=(12, 0),
                ecc=None,
                nvlink_version=0,
            )
            for index, bus in enumerate(["01", "03"])
        ),
        links=_all_pairs(2, "PHB"),
        peers=_all_pairs(2, "GNS"),
    )


def one_with_mig() -> NodeDescription:
    """HGX H100 whose GPU 2 is cut into MIG instances."""
    node = hgx_h100()
    gpus = [replace(each, mig=index == 2) for index, each in enumerate(node.gpus)]
    return replace(node, gpus=tuple(gpus))


EVERY = (
    hgx_h100,
    hgx_h100_four_numa,
    dgx_a100,
    a800,
    dgx_2,
    four_h100,
    pcie_l40s,
    two_rtx_5090,
    mixed_models,
)


def _all_pairs(count: int, kind: str) -> tuple[tuple[str, ...], ...]:
    return tuple(
        tuple("X" if row == column else kind for column in range(count)) for row in range(count)
    )
