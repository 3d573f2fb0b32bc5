"""Tensors in Redis over a Unix socket: `python -m tests.benchmarks.rivals.redis_program`.

Its arguments are rounds, a count, and sizes: of each size one is parked at a time, and then so many
at once, in so many rounds.

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
    batch_rounds, batch, *sizes = (int(word) for word in sys.argv[1:])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="redis-", dir="/tmp") as name:
        path = str(Path(name) / "redis.sock")
        words = ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", name]
        server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        try:
            client = _connected(path, server)
            found = {f"each {nbytes}": _each(client, nbytes) for nbytes in sizes}
            for nbytes in sizes:
                found[f"batch {nbytes}"] = _batch(client, nbytes, batch, rounds=batch_rounds)
        finally:
            server.terminate()
            server.wait()
    say(found)


def _each(client: redis.Redis, nbytes: int) -> dict[str, float]:
    """SET, GET and DEL of one tensor."""
    source = torch.randint(0, 256, (nbytes,), dtype=torch.uint8)
    out = torch.zeros_like(source)
    found = medians_us(
        lambda: client.set(KEY, source.numpy().data),
        lambda _: np.copyto(out.numpy(), np.frombuffer(client.get(KEY), dtype=np.uint8)),
        lambda _: client.delete(KEY),
        rounds=ROUNDS,
    )
    assert torch.equal(out, source)
    return found


def _batch(client: redis.Redis, nbytes: int, count: int, *, rounds: int) -> dict[str, float]:
    """MSET, MGET and DEL of so many at once."""
    source = torch.randint(0, 256, (count, nbytes), dtype=torch.uint8)
    out = torch.zeros_like(source)
    keys = [f"{KEY} {number}" for number in range(count)]

    def back() -> None:
        for row, found in zip(out.numpy(), client.mget(keys), strict=True):
            np.copyto(row, np.frombuffer(found, dtype=np.uint8))

    medians = medians_us(
        lambda: client.mset(dict(zip(keys, (row.data for row in source.numpy()), strict=True))),
        lambda _: back(),
        lambda _: client.delete(*keys),
        rounds=rounds,
    )
    assert torch.equal(out, source)
    return medians


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
