"""What there is of NVIDIA's: by files and processes, and by NVML where a driver runs."""

from __future__ import annotations

import grp
import importlib.metadata
import os
import pwd
import re
from collections.abc import Iterator
from pathlib import Path

from aqua_daemon.ctl.doctor.nvidia_facts import DeviceNode, Nvidia, ServiceUser
from aqua_daemon.ctl.doctor.nvml_asking import NvmlWord, ask_nvml

SERVICE_USER = "aqua"  # of the shipped units
_DEFAULT_PIPES = Path("/tmp/nvidia-mps")  # noqa: S108 - where MPS itself looks
_MPS = ("nvidia-cuda-mps-control", "nvidia-cuda-mps-server")
_FABRIC_MANAGER = "nv-fabricmanager"


def examine_nvidia(
    *, seconds: float, proc: Path = Path("/proc"), dev: Path = Path("/dev")
) -> Nvidia:
    """The driver, its device nodes, each GPU's settings, and what of NVIDIA's runs beside them."""
    driver = driver_version(proc / "driver" / "nvidia" / "version")
    word = ask_nvml(seconds=seconds) if driver else NvmlWord()
    paths = sorted(
        path for path in dev.glob("nvidia*") if re.fullmatch(r"nvidia(ctl|-uvm|\d+)", path.name)
    )
    programs = dict(_programs(proc))
    return Nvidia(
        driver=driver,
        library=word.library,
        cuda_version=word.cuda_version,
        bindings=_bindings_version(),
        nodes=tuple(_node(path) for path in paths),
        closed_nodes=tuple(
            f"/dev/{path.name}" for path in paths if not os.access(path, os.R_OK | os.W_OK)
        ),
        service_user=service_user(SERVICE_USER),
        gpus=tuple(word.gpus[index] for index in sorted(word.gpus)),
        nvml_trouble=word.trouble,
        mps_pids=tuple(pid for pid, name in programs.items() if name in _MPS),
        mps_pipes=_mps_pipes(),
        fabric_manager_pid=next(
            (pid for pid, name in programs.items() if name == _FABRIC_MANAGER), 0
        ),
    )


def driver_version(file: Path) -> str:
    """The kernel module's version; empty when it is not loaded."""
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", file.read_text())
    except OSError:
        return ""
    return found[0] if found else "of an unknown version"


def service_user(name: str) -> ServiceUser | None:
    """A user with its groups; None: there is none of that name."""
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        return None
    groups = {found.pw_gid, *(group.gr_gid for group in grp.getgrall() if name in group.gr_mem)}
    return ServiceUser(name=name, uid=found.pw_uid, groups=frozenset(groups))


def _node(path: Path) -> DeviceNode:
    found = path.stat()
    try:
        group_name = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group_name = str(found.st_gid)
    return DeviceNode(
        path=f"/dev/{path.name}",
        mode=found.st_mode & 0o777,
        owner=found.st_uid,
        group=found.st_gid,
        group_name=group_name,
    )


def _programs(proc: Path) -> Iterator[tuple[int, str]]:
    """Each process by the name that it was started under."""
    for process in proc.iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has just ended, or is hidden
                continue
            yield int(process.name), Path(os.fsdecode(words[0])).name


def _mps_pipes() -> str:
    named = os.environ.get("CUDA_MPS_PIPE_DIRECTORY")  # noqa: TID251 - of MPS, not a setting of ours
    place = Path(named) if named else _DEFAULT_PIPES
    return str(place) if (place / "control").exists() else ""


def _bindings_version() -> str:
    try:
        return importlib.metadata.version("cuda-bindings")
    except importlib.metadata.PackageNotFoundError:
        return ""
