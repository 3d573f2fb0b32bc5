"""Tensors in Ray's object store: `python -m tests.benchmarks.rivals.ray_program SMALL LARGE`.

Run it in a network of its own (`unshare --net --map-root-user`), whose loopback it raises: Ray's
processes listen on every address that they find. No dashboard, no usage report. The default way is
a torch tensor, which is pickled; a numpy array comes back as a view of the store, without a copy.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import tempfile
from collections.abc import Callable

from tests.benchmarks.rivals.rounds import medians_us, say

SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1
SMALL_ROUNDS, LARGE_ROUNDS = 300, 12
STORE_BYTES = 2**30


def main() -> None:
    small, large = (int(word) for word in sys.argv[1:])
    _raise_loopback()
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as directory:
        os.environ.update(HOME=directory, RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
        import ray
        import torch

        torch.set_num_threads(1)
        ray.init(
            address="local",
            num_cpus=1,
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=directory,
        )
        try:
            tensor = torch.randint(0, 256, (small,), dtype=torch.uint8)
            big = torch.randint(0, 256, (large,), dtype=torch.uint8)
            buffer = torch.zeros_like(big)
            say(
                {
                    "default": _measured(ray.put, ray.get, tensor, SMALL_ROUNDS),
                    "zero_copy": _measured(ray.put, ray.get, tensor.numpy(), SMALL_ROUNDS),
                    "zero_copy_large": _measured(ray.put, ray.get, big.numpy(), LARGE_ROUNDS),
                    "copy_large": medians_us(
                        lambda: buffer.copy_(big), lambda _: 0, lambda _: 0, rounds=LARGE_ROUNDS
                    ),
                }
            )
        finally:
            ray.shutdown()


def _measured(
    put: Callable[[object], object], get: Callable[[object], object], what: object, rounds: int
) -> dict[str, float]:
    return medians_us(lambda: put(what), get, lambda _: None, rounds=rounds)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", IFF_UP)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request)


if __name__ == "__main__":
    main()
