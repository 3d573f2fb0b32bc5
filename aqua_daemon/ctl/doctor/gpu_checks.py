"""NVIDIA's driver, and what each GPU is set to. Pure: a record in, findings out.

How GPUs reach each other is `link_checks`'; where this machine is, `place_checks`'.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from aqua_daemon.ctl.doctor.findings import Finding, Level, fail, ok, warn
from aqua_daemon.ctl.doctor.machine import Machine
from aqua_daemon.ctl.doctor.nvidia_facts import Gpu, Nvidia

NEEDED_NODES = ("nvidiactl", "nvidia-uvm")
OLDEST_DRIVER = (525, 60)  # of CUDA 12, the oldest that cuda-bindings 12 works with
_RESET = "nvidia-smi --gpu-reset -i {uuid} when nobody uses it; if they come back, have it replaced"
_Trouble = tuple[Level, str, str]  # how bad, what, and the remedy


def check_driver(machine: Machine) -> Iterator[Finding]:
    """Without the driver there are stand-in GPUs only."""
    nvidia = machine.nvidia
    if not nvidia.driver:
        yield warn(
            "NVIDIA driver",
            "not loaded: stand-in GPUs of shared memory can be served, real ones can't",
            "on a machine with GPUs: install the driver, then modprobe nvidia",
        )
        return
    trouble = _version_trouble(nvidia) or _node_trouble(nvidia)
    if trouble is not None:
        yield fail("NVIDIA driver", f"{nvidia.driver}{trouble[0]}", trouble[1])
        return
    yield ok("NVIDIA driver", f"{nvidia.driver}, {len(nvidia.nodes)} device nodes")


def check_gpus(machine: Machine) -> Iterator[Finding]:
    """What each GPU is set to, and whether it can be lent."""
    nvidia = machine.nvidia
    if not nvidia.driver:
        return
    if nvidia.nvml_trouble:
        yield fail("NVML", nvidia.nvml_trouble, _nvml_remedy(nvidia.nvml_trouble))
    for gpu in nvidia.gpus:
        yield _gpu(gpu)


def _version_trouble(nvidia: Nvidia) -> tuple[str, str] | None:
    version = re.match(r"(\d+)\.(\d+)", nvidia.driver)
    if version and (int(version[1]), int(version[2])) < OLDEST_DRIVER:
        oldest = ".".join(map(str, OLDEST_DRIVER))
        return f": {oldest} or newer is needed", "install a newer driver, then reboot"
    if nvidia.library and nvidia.library != nvidia.driver:
        return (
            f" is the kernel module's version, {nvidia.library} the library's",
            "reboot, or stop all that uses the GPUs and reload the modules: the driver was upgraded",
        )
    newest = nvidia.cuda_version // 1000
    if not nvidia.bindings:
        remedy = f"/opt/aqua/bin/pip install 'cuda-bindings=={newest or 12}.*'"
        return ", without cuda-bindings: keepers of real GPUs can't work", remedy
    if newest and int(nvidia.bindings.partition(".")[0]) > newest:
        return (
            f" knows CUDA {newest}, and cuda-bindings {nvidia.bindings} is of a later one",
            f"/opt/aqua/bin/pip install 'cuda-bindings=={newest}.*', or install a newer driver",
        )
    return None


def _node_trouble(nvidia: Nvidia) -> tuple[str, str] | None:
    there = {node.path for node in nvidia.nodes}
    needed = [f"/dev/{name}" for name in NEEDED_NODES]
    needed += [f"/dev/nvidia{gpu.minor}" for gpu in nvidia.gpus if gpu.minor is not None]
    if not any(re.fullmatch(r"/dev/nvidia\d+", path) for path in (*there, *needed)):
        needed.append("/dev/nvidia0")
    missing = [path for path in needed if path not in there]
    if missing:
        return (
            f", without {', '.join(missing)}",
            "nvidia-modprobe -u -c 0 (in a container: pass the device nodes in)",
        )
    if nvidia.closed_nodes:
        return (
            f"; {', '.join(nvidia.closed_nodes)} may not be opened by you",
            "give your user the group of these nodes (ls -l /dev/nvidia*)",
        )
    user = nvidia.service_user
    closed = [node for node in nvidia.nodes if user is not None and not user.may_use(node)]
    if user is not None and closed:
        first, paths = closed[0], ", ".join(node.path for node in closed)
        permissions = f"mode {first.mode:o}, group {first.group_name}"
        return (
            f"; {paths} may not be opened by the service's user {user.name} ({permissions})",
            f"usermod -aG {first.group_name} {user.name}, then systemctl restart 'aqua-keeper@*'",
        )
    return None


def _nvml_remedy(trouble: str) -> str:
    if "mismatch" in trouble.lower():
        return "reboot, or reload the modules: the driver was upgraded and the old one still runs"
    return "see dmesg -T | grep -i nvrm; a GPU that is stuck needs a reset or a reboot"


def _gpu(gpu: Gpu) -> Finding:
    check = f"GPU {gpu.uuid[:12]}"
    if gpu.trouble:
        remedy = "dmesg -T | grep -i xid; nvidia-smi -q; it may need a reset or a reboot"
        return fail(check, gpu.trouble, remedy)
    settings = ", ".join(
        [
            gpu.model,
            f"MIG {_switch(gpu.mig)}",
            f"ECC {_switch(gpu.ecc)}",
            f"compute mode {gpu.compute_mode}",
        ]
    )
    troubles = sorted(_troubles(gpu), key=lambda one: -one[0])
    if not troubles:
        return ok(check, settings)
    return Finding(
        check=check,
        level=troubles[0][0],
        sentence=f"{settings}: {'; '.join(dict.fromkeys(words for _, words, _ in troubles))}",
        remedy="; ".join(dict.fromkeys(remedy for _, _, remedy in troubles)),
    )


def _troubles(gpu: Gpu) -> Iterator[_Trouble]:
    """All that is wrong with one."""
    smi = f"nvidia-smi -i {gpu.uuid}"
    reset = _RESET.format(uuid=gpu.uuid)
    if gpu.repair_failed:
        yield Level.FAIL, "its memory can't be repaired any more", "have it replaced"
    elif gpu.repair_pending:
        yield Level.FAIL, "its memory waits for a repair, which a reset does", reset
    if gpu.uncorrected_errors:
        words = f"{gpu.uncorrected_errors} errors of its memory were not corrected"
        yield Level.FAIL, words, reset
    if gpu.compute_mode != "default":
        yield Level.FAIL, "it is not lent", f"{smi} -c 0"
    if gpu.mig:
        yield Level.WARN, "it is not lent", f"{smi} -mig 0"
    if gpu.ecc is False:
        yield Level.WARN, "bit errors go unseen", f"{smi} -e 1, reboot"
    if gpu.persistence is False:
        yield (
            Level.WARN,
            "the driver lets it go when nobody uses it, and takes seconds to wake it",
            "systemctl enable --now nvidia-persistenced",
        )


def _switch(value: bool | None) -> str:  # noqa: FBT001 - it is the value that is shown
    return {None: "not there", True: "on", False: "off"}[value]
