"""Reads the daemon's metrics: what each GPU's memory is used for now."""

from __future__ import annotations

import http.client
import re
from collections import defaultdict

from aqua_client.demo.happenings import GpuBytes

TIMEOUT_SECONDS = 2.0
_LENDABLE = re.compile(r'^aqua_lendable_bytes\{gpu="([^"]+)"\} (\S+)$', re.MULTILINE)
_POOL = re.compile(r'^aqua_pool_bytes\{gpu="([^"]+)",state="([^"]+)"\} (\S+)$', re.MULTILINE)


def read_gpus(address: str) -> tuple[GpuBytes, ...]:
    """The GPUs of the node whose daemon serves metrics at `address`, HOST:PORT.

    Raises:
        OSError: nobody answers there.
    """
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/metrics")
        return gpus_of(connection.getresponse().read().decode())
    except http.client.HTTPException as error:
        raise OSError(f"no metrics from {address}: {error}") from error
    finally:
        connection.close()


def gpus_of(page: str) -> tuple[GpuBytes, ...]:
    """The GPUs that a page of metrics names, in the order of their names."""
    pools: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for gpu, state, value in _POOL.findall(page):
        pools[gpu][state] += int(float(value))
    lendable = {gpu: int(float(value)) for gpu, value in _LENDABLE.findall(page)}
    return tuple(
        GpuBytes(
            gpu=gpu,
            own=pool["used_by_others"],
            lent=pool["lent"],
            quarantined=pool["quarantined"],
            returning=pool["returning"],
            free=pool["free"],
            lendable=lendable.get(gpu, 0),
        )
        for gpu, pool in sorted(pools.items())
    )
