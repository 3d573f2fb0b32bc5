"""Namespaces and NUMA: whether handles work from here, and memory is near. Pure: a record in, findings out."""

from __future__ import annotations

from collections.abc import Iterator

from aqua_daemon.ctl.doctor.findings import Finding, fail, ok, warn
from aqua_daemon.ctl.doctor.machine import Machine

LITTLE_BYTES = 2 * 2**30  # an evacuation buffer and some slabs of 256 MiB
_HOST_PID = "docker run --pid=host (Kubernetes: hostPID: true)"


def check_place(machine: Machine) -> Iterator[Finding]:
    """Processes must have the same numbers for the daemon, its keepers and their clients."""
    yield _namespaces(machine)
    if machine.nvidia.gpus:
        yield _numa(machine)


def _namespaces(machine: Machine) -> Finding:
    place = machine.namespaces
    inside = f"in {place.container}, " if place.container else ""
    if place.is_daemons_pid is False:
        return fail(
            "namespaces",
            f"{inside}the daemon is in another PID namespace: it can't tell processes here apart",
            _HOST_PID,
        )
    if place.is_hosts_pid is False and machine.nvidia.driver:
        return fail(
            "namespaces",
            f"{inside}a PID namespace of its own: handles of CUDA memory can't be trusted to work "
            "across it",
            _HOST_PID,
        )
    if place.is_hosts_pid is not True:
        known = "not known" if place.is_hosts_pid is None else "a PID namespace of its own"
        return warn("namespaces", f"{inside}{known}: stand-in GPUs work inside it alone", _HOST_PID)
    ipc = "" if place.is_hosts_ipc is not False else ", an IPC namespace of its own (not needed)"
    return ok("namespaces", f"{inside}the host's PID namespace{ipc}")


def _numa(machine: Machine) -> Finding:
    nodes = {node.number: node for node in machine.numa}
    unknown = [gpu.uuid[:12] for gpu in machine.nvidia.gpus if gpu.numa_node is None]
    wanted = sorted({gpu.numa_node for gpu in machine.nvidia.gpus if gpu.numa_node is not None})
    poor = [
        number
        for number in wanted
        if nodes and (number not in nodes or nodes[number].free_bytes < LITTLE_BYTES)
    ]
    if len(nodes) > 1 and unknown:
        return warn(
            "NUMA",
            f"the machine has {len(nodes)} nodes, and {', '.join(unknown)} tells none: staging may "
            "cross sockets",
            "nvidia-smi topo -m; in a virtual machine: pass the host's topology through",
        )
    if poor:
        named = ", ".join(map(str, poor))
        return warn(
            "NUMA",
            f"little memory is left on node {named}, where GPUs are: staging comes from afar",
            "numastat -m; have others allocate elsewhere (numactl), or restart them interleaved",
        )
    if not wanted:
        return ok("NUMA", "one node")
    named = ", ".join(map(str, wanted))
    return ok("NUMA", f"GPUs on node {named} of {max(1, len(nodes))}, with memory of its own")
