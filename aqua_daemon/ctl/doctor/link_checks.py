"""How the GPUs of a node reach each other, and what must run for that. Pure: a record in, findings out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from aqua_daemon.ctl.doctor.findings import Finding, fail, ok, warn
from aqua_daemon.ctl.doctor.machine import Machine
from aqua_daemon.ctl.doctor.nvidia_facts import Gpu, Nvidia, PeerLink

_WHY = {
    "CNS": "the chipset does not support it",
    "GNS": "the GPU does not support it",
    "TNS": "the topology does not support it",
    "DR": "it is disabled by a setting of the driver",
    "NS": "it is not supported",
}
_Pair = tuple[Gpu, PeerLink]


def check_peers(machine: Machine) -> Iterator[Finding]:
    """Which pairs of GPUs have peer access, by what, and which links are down."""
    gpus = [gpu for gpu in machine.nvidia.gpus if not gpu.trouble]
    if not gpus:
        return
    yield _peers([(gpu, link) for gpu in gpus for link in gpu.links])
    yield _nvlinks(gpus)


def check_sharing(machine: Machine) -> Iterator[Finding]:
    """Programs of NVIDIA's that must run, and one that is better kept away."""
    nvidia = machine.nvidia
    if not nvidia.driver:
        return
    yield _mps(nvidia)
    if any(gpu.nvlinks_to_switch for gpu in nvidia.gpus):
        yield _fabric(nvidia)


def _peers(pairs: list[_Pair]) -> Finding:
    told = [pair for pair in pairs if pair[1].access]
    reaching = [link for _, link in told if link.access == "OK"]
    refused = [pair for pair in told if pair[1].access != "OK"]
    if not pairs:
        return ok("P2P", "one GPU: nobody else to lend to")
    by_kind = Counter("NVLink" if link.kind == "NV" else link.kind for link in reaching)
    matrix = f"{len(reaching)} of {len(pairs)} directions" + "".join(
        f", {count} by {kind}" for kind, count in by_kind.items()
    )
    if not reaching:
        return fail(
            "P2P",
            f"no GPU reaches another: {_refusals(refused)}: nothing can be lent",
            "nvidia-smi topo -p2p r; enable ACS/IOMMU pass-through if they are to reach each other",
        )
    if refused:
        remedy = "nvidia-smi topo -p2p r; such pairs never lend to each other, others do"
        return warn("P2P", f"{matrix}; {_refusals(refused)}", remedy)
    if set(by_kind) - {"NVLink"}:
        return warn(
            "P2P",
            f"{matrix}: PCIe is no faster than host memory, and lends nothing until it is measured",
            "aquactl bench links: what is faster lends then; without: lend_over_pcie = true",
        )
    return ok("P2P", matrix)


def _refusals(refused: list[_Pair]) -> str:
    if not refused:
        return "NVML does not tell of any pair"
    (gpu, link), *others = refused
    why = _WHY.get(link.access, link.access)
    more = f" and {len(others)} more" if others else ""
    return f"none from {gpu.uuid[:12]} to {link.peer[:12]}{more} ({link.access}: {why})"


def _nvlinks(gpus: list[Gpu]) -> Finding:
    most: dict[str, int] = {}
    for gpu in gpus:  # models differ in how many they have, and some have links switched off
        most[gpu.model] = max(most.get(gpu.model, 0), gpu.nvlinks)
    down = [gpu for gpu in gpus if gpu.nvlinks < most[gpu.model]]
    if down:
        named = ", ".join(f"{gpu.uuid[:12]} has {gpu.nvlinks} of {most[gpu.model]}" for gpu in down)
        return warn(
            "NVLink",
            f"links are down: {named} that are up on its like",
            f"nvidia-smi nvlink -s -i {down[0].uuid}; dmesg -T | grep -i nvlink; reset or reseat it",
        )
    if not any(most.values()):
        return ok("NVLink", "there is none")
    counts = ", ".join(f"{count} a GPU" for count in sorted({*most.values()}))
    return ok("NVLink", f"{counts}, all up")


def _mps(nvidia: Nvidia) -> Finding:
    if nvidia.mps_pids:
        pids = ", ".join(map(str, nvidia.mps_pids))
        pipes = f", pipes in {nvidia.mps_pipes}" if nvidia.mps_pipes else ""
        return warn(
            "MPS",
            f"it runs (processes {pids}{pipes}): a fault of one client is a fault of all; keepers "
            "keep out of it",
            "unless your servers need it: echo quit | nvidia-cuda-mps-control",
        )
    if nvidia.mps_pipes:
        return warn(
            "MPS",
            f"{nvidia.mps_pipes} has a pipe of a control daemon that does not run",
            f"rm -r {nvidia.mps_pipes}, or start it: nvidia-cuda-mps-control -d",
        )
    return ok("MPS", "does not run")


def _fabric(nvidia: Nvidia) -> Finding:
    states = {gpu.fabric for gpu in nvidia.gpus if gpu.fabric}
    start = "systemctl enable --now nvidia-fabricmanager, of the driver's very version; its journal"
    if states - {"completed"}:
        return fail("fabric manager", f"the fabric is {', '.join(sorted(states))}", start)
    if nvidia.fabric_manager_pid:
        return ok("fabric manager", f"runs, process {nvidia.fabric_manager_pid}")
    if states:
        return ok("fabric manager", "the fabric is completed")
    return fail(
        "fabric manager",
        "does not run, as far as can be seen: behind NVSwitch no CUDA program starts without it",
        start,
    )
