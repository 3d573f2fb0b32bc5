"""Tensors in Redis over a Unix socket: `python -m tests.benchmarks.rivals.redis_program NBYTES`.

Starts a `redis-server` of its own that listens on nothing but a socket in a directory of its own,
and writes nothing to disk.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import redis
import torch

from tests.benchmarks.rivals.rounds import medians_us, say

ROUNDS = 400
READY_SECONDS = 20.0
KEY = "tensor"


def main() -> None:
    torch.set_num_threads(1)
    source = torch.randint(0, 256, (int(sys.argv[1]),), dtype=torch.uint8)
    out = torch.zeros_like(source)
    with tempfile.TemporaryDirectory(prefix="redis-", dir="/tmp") as name:
        path = str(Path(name) / "redis.sock")
        words = ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", name]
        server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        try:
            client = _connected(path, server)
            found = medians_us(
                lambda: client.set(KEY, source.numpy().data),
                lambda _: np.copyto(out.numpy(), np.frombuffer(client.get(KEY), dtype=np.uint8)),
                lambda _: client.delete(KEY),
                rounds=ROUNDS,
            )
        finally:
            server.terminate()
            server.wait()
    assert torch.equal(out, source)
    say({"redis": found})


def _connected(path: str, server: subprocess.Popen[bytes]) -> redis.Redis:
    client = redis.Redis(unix_socket_path=path)
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            client.ping()
        except redis.ConnectionError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return client


if __name__ == "__main__":
    main()
