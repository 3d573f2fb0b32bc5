"""What there is of NVIDIA's: by files, and by NVML where a driver runs.

NVML can stall on a sick GPU, so it is asked on a thread that nobody waits for longer than said.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

from aqua_daemon.ctl.doctor.machine import Gpu, Nvidia

_COMPUTE_MODES = {0: "default", 1: "exclusive", 2: "prohibited", 3: "exclusive"}


def examine_nvidia(
    *, seconds: float, proc: Path = Path("/proc"), dev: Path = Path("/dev")
) -> Nvidia:
    """The driver, its device nodes, and each GPU's settings."""
    driver = driver_version(proc / "driver" / "nvidia" / "version")
    nodes = sorted(
        node for node in dev.glob("nvidia*") if re.fullmatch(r"nvidia(ctl|-uvm|\d+)", node.name)
    )
    gpus, trouble = _gpus_in_time(seconds) if driver else ((), "")
    return Nvidia(
        driver=driver,
        nodes=tuple(f"/dev/{node.name}" for node in nodes),
        closed_nodes=tuple(
            f"/dev/{node.name}" for node in nodes if not os.access(node, os.R_OK | os.W_OK)
        ),
        gpus=gpus,
        nvml_trouble=trouble,
    )


def driver_version(file: Path) -> str:
    """The kernel module's version; empty when it is not loaded."""
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", file.read_text())
    except OSError:
        return ""
    return found[0] if found else "of an unknown version"


def _gpus_in_time(seconds: float) -> tuple[tuple[Gpu, ...], str]:
    answers: list[tuple[tuple[Gpu, ...], str]] = []
    asking = threading.Thread(target=lambda: answers.append(_gpus()), daemon=True)
    asking.start()
    asking.join(seconds)
    if not answers:
        return (), f"NVML has not answered within {seconds:g} s"
    return answers[0]


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except (pynvml.NVMLError, OSError) as error:
        return (), f"NVML does not work: {error}"
    return tuple(_gpu(number) for number in range(count)), ""


def _gpu(number: int) -> Gpu:
    import pynvml

    uuid = f"number {number}"
    try:
        device = pynvml.nvmlDeviceGetHandleByIndex(number)
        uuid = str(pynvml.nvmlDeviceGetUUID(device))
        return Gpu(
            uuid=uuid,
            model=str(pynvml.nvmlDeviceGetName(device)),
            mig=_current(lambda: pynvml.nvmlDeviceGetMigMode(device)),
            ecc=_current(lambda: pynvml.nvmlDeviceGetEccMode(device)),
            compute_mode=_COMPUTE_MODES.get(
                pynvml.nvmlDeviceGetComputeMode(device), "of an unknown kind"
            ),
        )
    except pynvml.NVMLError as error:
        return Gpu(uuid=uuid, trouble=f"NVML: {error}")


def _current(ask: Callable[[], list[int]]) -> bool | None:
    """The mode in force of `[current, pending]`; None on a GPU that has no such mode."""
    import pynvml

    try:
        return bool(ask()[0])
    except pynvml.NVMLError_NotSupported:
        return None
