"""What is known of a CUDA GPU, and what follows from it: whether it may be lent, and what to warn of.

Records and rules. Where they come from is `nvml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How one GPU reaches another."""

    peer: str
    kind: str  # "NV", or how far by PCIe: PIX, PXB, PHB, NODE, SYS
    count: int  # of bonded NVLinks; 0 by PCIe
    has_peer_access: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What does not change while the machine runs."""

    uuid: str
    model: str
    numa_node: int | None
    links: tuple[Link, ...]


class Repair(Enum):
    """What has become of memory that failed."""

    NONE = "none"
    PENDING = "pending"  # the driver keeps it out of use until a reset mends it
    FAILED = "failed"  # there is nothing left to mend it with


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One GPU as NVML told it at one moment."""

    total_bytes: int
    used_bytes: int  # by anybody, the driver included
    process_bytes: Mapping[int, int]  # 0 where NVML does not tell, as in a container
    has_mig: bool = False
    compute_mode: str = "DEFAULT"
    has_ecc: bool | None = None  # None: this model has none to switch
    memory_repair: Repair = Repair.NONE
    mps_users: frozenset[int | None] | None = None  # uids, None: not to be seen; no server: None
    sm_clock_mhz: int = 0
    memory_clock_mhz: int = 0
    slowed_by: tuple[str, ...] = ()


def not_lending(reading: Reading) -> str:
    """Why the GPU may not be lent as it is, and what would change that; empty: it may."""
    if reading.has_mig:
        return "MIG is enabled, and its instances can't reach each other: nvidia-smi -mig 0"
    if reading.compute_mode != "DEFAULT":
        return (
            f"its compute mode is {reading.compute_mode}, which keeps others out: nvidia-smi -c 0"
        )
    if reading.memory_repair is Repair.FAILED:
        return "its memory has failed and can't be repaired any more: have it replaced"
    users = reading.mps_users
    if users is not None and (len(users) > 1 or None in users):
        return (
            "an MPS server has clients of several users there, and a fault of one is a fault of "
            "all: give each user its own, or stop it"
        )
    return ""


def warnings(reading: Reading) -> tuple[str, ...]:
    """What an operator should know although the GPU may be lent."""
    found = []
    if reading.has_ecc is False:
        found.append("ECC is off: a flipped bit in lent memory goes unnoticed (nvidia-smi -e 1)")
    if reading.memory_repair is Repair.PENDING:
        found.append("its memory waits for a repair: nvidia-smi --gpu-reset when nobody uses it")
    if reading.mps_users is not None:
        found.append("an MPS server runs there: a fault of one client is a fault of all")
    if reading.slowed_by:
        reasons = ", ".join(reading.slowed_by)
        found.append(f"it is slowed by {reasons} (SM clock {reading.sm_clock_mhz} MHz)")
    return tuple(found)
