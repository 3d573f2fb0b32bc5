"""`aqua-daemon keeper --list`: the CUDA GPUs of this node as JSON, by NVML, without a context.

A process of its own, because NVML can hang on a sick GPU: whoever asks gives it a deadline.
"""

from __future__ import annotations

import json
import sys

from aqua_daemon.keeper import inventory
from aqua_daemon.keeper.nvml import Nvml, NvmlError

SCHEMA = 1


def main() -> int:
    """Print them; the exit status, 1 where NVML can't be asked (stderr says why)."""
    try:
        with Nvml() as nvml:
            gpus = [_listed(nvml, uuid) for uuid in nvml.uuids()]
            lost = nvml.count() - len(gpus)
    except NvmlError as error:
        sys.stderr.write(f"aqua keeper: {error}\n")
        return 1
    sys.stdout.write(json.dumps({"schema": SCHEMA, "gpus": gpus, "lost": lost}, indent=1) + "\n")
    return 0


def _listed(nvml: Nvml, uuid: str) -> dict[str, object]:
    try:
        identity, reading = nvml.identity(uuid), nvml.reading(uuid)
    except NvmlError as error:  # lost this moment
        return {"uuid": uuid, "not_lending": str(error)}
    return {
        "uuid": uuid,
        "model": identity.model,
        "total_bytes": reading.total_bytes,
        "used_bytes": reading.used_bytes,
        "not_lending": inventory.not_lending(reading),
        "warnings": list(inventory.warnings(reading)),
        "numa_node": identity.numa_node,
        "links": [
            {
                "peer": link.peer,
                "kind": link.kind,
                "count": link.count,
                "has_peer_access": link.has_peer_access,
            }
            for link in identity.links
        ],
        "sm_clock_mhz": reading.sm_clock_mhz,
        "memory_clock_mhz": reading.memory_clock_mhz,
    }
