"""Doctor's lines about GPUs: the driver, each GPU, how they reach each other, and where we are."""

from __future__ import annotations

from dataclasses import replace

from aqua_daemon.ctl.doctor.nvidia_facts import Gpu, Nvidia, PeerLink
from aqua_daemon.ctl.doctor.surroundings import Namespaces, NumaNode
from tests.ctl.cases import fail, ok, warn
from tests.ctl.machines import GIB, GPU, NODES, NVIDIA

NAME = "GPU GPU-8f6e0000"
OTHER = "GPU-9a7f1111-bbbb"


def one(**changes: object) -> Nvidia:
    """The one GPU of a healthy machine, changed."""
    return replace(NVIDIA, gpus=(replace(GPU, **changes),))  # type: ignore[arg-type]  # its fields


def pair(kind: str, access: str, back: str = "", **changes: object) -> Nvidia:
    """Two GPUs, and how each reaches the other."""
    first = replace(GPU, links=(PeerLink(peer=OTHER, kind=kind, access=access),), **changes)  # type: ignore[arg-type]  # its fields
    there = (PeerLink(peer=GPU.uuid, kind=kind, access=back or access),)
    return replace(NVIDIA, gpus=(first, replace(GPU, uuid=OTHER, nvlinks=18, links=there)))


def switched(fabric: str = "", manager: int = 0) -> Nvidia:
    """A GPU behind NVSwitch."""
    gpu: Gpu = replace(GPU, nvlinks=18, nvlinks_to_switch=18, fabric=fabric)
    return replace(NVIDIA, gpus=(gpu,), fabric_manager_pid=manager)


GPU_CASES = [
    ok("NVIDIA driver", "570.1, 3 device nodes"),
    warn("NVIDIA driver", "not loaded", "modprobe nvidia", nvidia=replace(NVIDIA, driver="")),
    fail(
        "NVIDIA driver",
        "without /dev/nvidia-uvm",
        "nvidia-modprobe",
        nvidia=replace(NVIDIA, nodes=NODES[1:]),
    ),
    fail(
        "NVIDIA driver",
        "without /dev/nvidia0",
        "nvidia-modprobe",
        nvidia=replace(NVIDIA, nodes=(NODES[0], NODES[2])),
    ),
    fail(
        "NVIDIA driver",
        "/dev/nvidia0 may not be opened",
        "ls -l /dev/nvidia",
        nvidia=replace(NVIDIA, closed_nodes=("/dev/nvidia0",)),
    ),
    ok("GPU GPU-8f6e0000", "NVIDIA H200, MIG off, ECC on, compute mode default"),
    ok(
        "GPU GPU-8f6e0000",
        "MIG not there, ECC not there",
        nvidia=replace(NVIDIA, gpus=(replace(GPU, mig=None, ecc=None),)),
    ),
    warn(
        "GPU GPU-8f6e0000",
        "MIG on, ECC on, compute mode default: it is not lent",
        "-mig 0",
        nvidia=replace(NVIDIA, gpus=(replace(GPU, mig=True),)),
    ),
    fail(
        "GPU GPU-8f6e0000",
        "compute mode exclusive: it is not lent",
        "-c 0",
        nvidia=replace(NVIDIA, gpus=(replace(GPU, compute_mode="exclusive"),)),
    ),
    warn(
        "GPU GPU-8f6e0000",
        "ECC off",
        "-e 1",
        nvidia=replace(NVIDIA, gpus=(replace(GPU, ecc=False),)),
    ),
    fail(
        "GPU GPU-8f6e0000",
        "GPU is lost",
        "nvidia-smi -q",
        nvidia=replace(NVIDIA, gpus=(replace(GPU, trouble="NVML: GPU is lost"),)),
    ),
    fail(
        "NVML",
        "has not answered",
        "dmesg",
        nvidia=replace(NVIDIA, gpus=(), nvml_trouble="NVML has not answered within 3 s"),
    ),
    fail(
        "NVML",
        "mismatch",
        "reboot",
        nvidia=replace(NVIDIA, gpus=(), nvml_trouble="Driver/library version mismatch"),
    ),
    fail(
        "NVIDIA driver",
        "470.82: 525.60 or newer",
        "newer driver",
        nvidia=replace(NVIDIA, driver="470.82"),
    ),
    fail(
        "NVIDIA driver",
        "570.1 is the kernel module's version, 575.2",
        "reboot",
        nvidia=replace(NVIDIA, library="575.2"),
    ),
    fail(
        "NVIDIA driver",
        "without cuda-bindings",
        "cuda-bindings==12.*",
        nvidia=replace(NVIDIA, bindings=""),
    ),
    fail(
        "NVIDIA driver",
        "knows CUDA 12, and cuda-bindings 13.0.1",
        "cuda-bindings==12.*",
        nvidia=replace(NVIDIA, bindings="13.0.1"),
    ),
    fail("NVIDIA driver", "without /dev/nvidia3", "nvidia-modprobe", nvidia=one(minor=3)),
    ok("NVIDIA driver", "3 device nodes", nvidia=one(minor=0)),
    fail(
        "NVIDIA driver",
        "/dev/nvidia0 may not be opened by the service's user aqua (mode 660, group video)",
        "usermod -aG video aqua",
        nvidia=replace(
            NVIDIA,
            nodes=(NODES[0], replace(NODES[1], mode=0o660, group=44, group_name="video"), NODES[2]),
        ),
    ),
    ok("NVIDIA driver", "3 device nodes", nvidia=replace(NVIDIA, service_user=None)),
    fail(
        NAME,
        "3 errors of its memory were not corrected",
        "--gpu-reset",
        nvidia=one(uncorrected_errors=3),
    ),
    fail(NAME, "waits for a repair", "--gpu-reset", nvidia=one(repair_pending=True)),
    fail(
        NAME,
        "3 errors of its memory",
        "--gpu-reset",
        nvidia=one(repair_pending=True, uncorrected_errors=3),
    ),
    fail(
        NAME,
        "can't be repaired any more",
        "replaced",
        nvidia=one(repair_pending=True, repair_failed=True),
    ),
    ok(NAME, "compute mode default", nvidia=one(uncorrected_errors=0, persistence=True)),
    warn(NAME, "takes seconds to wake it", "nvidia-persistenced", nvidia=one(persistence=False)),
    fail(
        NAME,
        "it is not lent; bit errors go unseen",
        "-c 0; nvidia-smi",
        nvidia=one(ecc=False, compute_mode="prohibited"),
    ),
    ok("P2P", "one GPU"),
    ok("P2P", "2 of 2 directions, 2 by NVLink", nvidia=pair("NV", "OK")),
    warn("P2P", "1 of 2 directions", "never lend to each other", nvidia=pair("NV", "OK", "CNS")),
    warn("P2P", "2 by NODE: PCIe is no faster", "lend_over_pcie", nvidia=pair("NODE", "OK")),
    warn("P2P", "until it is measured", "aquactl bench links", nvidia=pair("NODE", "OK")),
    fail(
        "P2P",
        "no GPU reaches another: none from GPU-8f6e0000 to GPU-9a7f1111 and 1 more (GNS: the GPU",
        "topo -p2p",
        nvidia=pair("PHB", "GNS"),
    ),
    fail("P2P", "NVML does not tell", "topo -p2p", nvidia=pair("PHB", "")),
    ok("NVLink", "there is none"),
    ok("NVLink", "18 a GPU, all up", nvidia=pair("NV", "OK", nvlinks=18)),
    warn(
        "NVLink",
        "GPU-8f6e0000 has 17 of 18",
        "nvlink -s -i GPU-8f6e0000",
        nvidia=pair("NV", "OK", nvlinks=17),
    ),
    ok("MPS", "does not run"),
    warn(
        "MPS",
        "it runs (processes 11, 12, pipes in /run/mps)",
        "echo quit",
        nvidia=replace(NVIDIA, mps_pids=(11, 12), mps_pipes="/run/mps"),
    ),
    warn(
        "MPS",
        "a control daemon that does not run",
        "rm -r /run/mps",
        nvidia=replace(NVIDIA, mps_pipes="/run/mps"),
    ),
    ok("fabric manager", "runs, process 12", nvidia=switched(manager=12)),
    ok("fabric manager", "the fabric is completed", nvidia=switched("completed")),
    fail("fabric manager", "does not run", "nvidia-fabricmanager", nvidia=switched()),
    fail(
        "fabric manager",
        "the fabric is in progress",
        "nvidia-fabricmanager",
        nvidia=switched("in progress", 12),
    ),
    ok("namespaces", "the host's PID namespace"),
    ok(
        "namespaces",
        "in docker, the host's PID namespace, an IPC namespace of its own (not needed)",
        namespaces=Namespaces(is_hosts_ipc=False, container="docker"),
    ),
    warn(
        "namespaces",
        "a PID namespace of its own: stand-in GPUs",
        "--pid=host",
        namespaces=Namespaces(is_hosts_pid=False),
        nvidia=Nvidia(),
    ),
    warn("namespaces", "not known", "hostPID", namespaces=Namespaces(is_hosts_pid=None)),
    fail(
        "namespaces",
        "in podman, a PID namespace of its own: handles",
        "hostPID",
        namespaces=Namespaces(is_hosts_pid=False, container="podman"),
    ),
    fail(
        "namespaces",
        "the daemon is in another",
        "--pid=host",
        namespaces=Namespaces(is_daemons_pid=False),
    ),
    ok("NUMA", "GPUs on node 0 of 1", nvidia=one(numa_node=0)),
    ok("NUMA", "one node"),
    warn(
        "NUMA",
        "the machine has 2 nodes, and GPU-8f6e0000 tells none",
        "topo -m",
        numa=(
            NumaNode(number=0, total_bytes=9 * GIB, free_bytes=9 * GIB),
            NumaNode(number=1, total_bytes=9 * GIB, free_bytes=9 * GIB),
        ),
    ),
    warn("NUMA", "little memory is left on node 1", "numastat", nvidia=one(numa_node=1)),
    warn(
        "NUMA",
        "little memory is left on node 0",
        "numastat",
        nvidia=one(numa_node=0),
        numa=(NumaNode(number=0, total_bytes=9 * GIB, free_bytes=GIB),),
    ),
]
