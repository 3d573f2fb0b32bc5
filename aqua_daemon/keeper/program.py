"""`aqua-daemon keeper`: the process that owns the memory of all shm GPUs.

Covers starting and stopping: the lock and the socket, signals, descriptor limits, the log. What is
answered on the socket is `server`'s, the books of slabs and owners are `node`'s.

A keeper outlives its importers and its daemon. It ends at SIGTERM once no living process holds a
slab (at a second SIGTERM in any case), or, when it was told to linger for so long only, after that
time without a daemon, owners and living holders.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import sys
from pathlib import Path

from aqua_daemon.keeper.exclusive_socket import AlreadyServed, ExclusiveSocket
from aqua_daemon.keeper.node import ShmNode
from aqua_daemon.keeper.server import KeeperServer

SMALLEST_SHM_SLAB_BYTES = 4 * 2**20
LARGEST_SHM_SLAB_BYTES = 32 * 2**20

_log = logging.getLogger("aqua.keeper")


def main(
    *,
    gpus: int,
    gpu_bytes: int,
    socket: str | Path,
    smallest_slab_bytes: int = SMALLEST_SHM_SLAB_BYTES,
    largest_slab_bytes: int = LARGEST_SHM_SLAB_BYTES,
    linger_seconds: float | None = None,
) -> int:
    """Keep the memory of *gpus* shm GPUs until told to end; the exit status.

    Args:
        gpus: how many; they are named `SHM-0`, `SHM-1`, ...
        gpu_bytes: the size of each.
        socket: where to listen; `SOCKET.lock` beside it is held for life.
        smallest_slab_bytes: no slab is smaller; told to the daemon when it attaches.
        largest_slab_bytes: no slab is larger.
        linger_seconds: end after this long without a daemon, owners and living holders (a keeper
            that a daemon spawned); None: never (one that was started from outside).

    Returns:
        0 after an orderly end, 1 when it could not start (the reason is on stderr).
    """
    _prepare_process()
    try:
        node = ShmNode(
            gpus=gpus,
            gpu_bytes=gpu_bytes,
            smallest_slab_bytes=smallest_slab_bytes,
            largest_slab_bytes=largest_slab_bytes,
        )
        listening = ExclusiveSocket(Path(socket))
    except (AlreadyServed, OSError, ValueError) as error:
        sys.stderr.write(f"aqua keeper: {error}\n")
        return 1
    with listening, node:
        _log.info("keeping %d GPUs of %d bytes at %s", gpus, gpu_bytes, socket)
        asyncio.run(_serve(node, listening, linger_seconds))
    return 0


async def _serve(node: ShmNode, listening: ExclusiveSocket, linger_seconds: float | None) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.closing(
        KeeperServer(node, listener=listening.listener, linger_seconds=linger_seconds)
    ) as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop)
        await server.finished.wait()


def _prepare_process() -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(message)s"
    )
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # what the kernel sends when a file lease is broken
    # A slab is one descriptor and a session two: the usual soft limit of 1,024 is soon reached.
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
