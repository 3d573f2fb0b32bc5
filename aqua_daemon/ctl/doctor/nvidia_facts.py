"""What doctor has found out about NVIDIA's driver and GPUs: facts only. Nothing is judged here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLink:
    """How one GPU reaches another."""

    peer: str  # its UUID
    kind: str  # NV, or how far by PCIe: PIX, PXB, PHB, NODE, SYS
    access: str  # OK, or why not as nvidia-smi has it: CNS, GNS, TNS, DR, NS; "": it is not told


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU by NVML's word. None: this GPU has no such thing, or does not tell."""

    uuid: str
    model: str = ""
    trouble: str = ""  # NVML could not tell of it
    minor: int | None = None  # its device node is /dev/nvidia<minor>
    mig: bool | None = None
    ecc: bool | None = None
    compute_mode: str = "default"  # default, exclusive, prohibited
    persistence: bool | None = None
    uncorrected_errors: int | None = None  # of memory, since the driver was loaded
    repair_pending: bool = False  # a row remapping or page retirement waits for a reset
    repair_failed: bool = False  # no row is left to remap to
    numa_node: int | None = None
    nvlinks: int = 0  # that are up
    nvlinks_to_switch: int = 0  # of those
    fabric: str = ""  # not started, in progress, completed; "": in none, or it does not tell
    links: tuple[PeerLink, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceNode:
    """A node of /dev, and who may use it."""

    path: str
    mode: int = 0o666
    owner: int = 0
    group: int = 0
    group_name: str = "root"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceUser:
    """Whom the keepers run as."""

    name: str
    uid: int
    groups: frozenset[int]

    def may_use(self, node: DeviceNode) -> bool:
        """Read and write it, by its mode."""
        if self.uid == 0:
            return True
        shift = 6 if self.uid == node.owner else 3 if node.group in self.groups else 0
        return (node.mode >> shift) & 0o6 == 0o6


@dataclass(frozen=True, slots=True, kw_only=True)
class Nvidia:
    """The driver and what it made."""

    driver: str = ""  # the kernel module's version; empty: not loaded
    library: str = ""  # NVML's word of the driver; empty: it said none
    cuda_version: int = 0  # of the driver: 13000; 0: not told
    bindings: str = ""  # the version of cuda-bindings; empty: not installed
    nodes: tuple[DeviceNode, ...] = ()
    closed_nodes: tuple[str, ...] = ()  # those that the caller may not open
    service_user: ServiceUser | None = None  # None: there is no such user
    gpus: tuple[Gpu, ...] = ()
    nvml_trouble: str = ""
    mps_pids: tuple[int, ...] = ()  # of the control daemon and its servers
    mps_pipes: str = ""  # the directory where its pipe lies; empty: there is none
    fabric_manager_pid: int = 0  # 0: it does not run, as far as can be seen
