"""`aqua-daemon keeper`: the process that owns the memory of all shm GPUs, or of one CUDA GPU.

Covers starting and stopping: the lock and the socket, signals, descriptor limits, the log. What is
answered on the socket is `server`'s, the books of slabs and owners are `node`'s.

A keeper outlives its importers and its daemon. It ends at SIGTERM once no living process holds a
slab (at a second SIGTERM in any case), or, when it was told to linger for so long only, after that
time without a daemon, owners and living holders. One whose GPU fails for good ends with status 1.
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
from aqua_daemon.keeper.node import KeptGpus
from aqua_daemon.keeper.server import KeeperServer
from aqua_daemon.keeper.shm_gpu import shm_gpus

MIB = 2**20
SMALLEST_SHM_SLAB_BYTES, LARGEST_SHM_SLAB_BYTES = 4 * MIB, 32 * MIB
# Opening a mapping costs about the same for every size up to here, and much more far above.
SMALLEST_CUDA_SLAB_BYTES, LARGEST_CUDA_SLAB_BYTES = 32 * MIB, 256 * MIB
FIRST_READING_SECONDS = 2.0  # what is not known by then is told as not known

_ENDING = (signal.SIGTERM, signal.SIGINT)
_log = logging.getLogger("aqua.keeper")


def keep_shm(
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
    sizes = {"smallest_slab_bytes": smallest_slab_bytes, "largest_slab_bytes": largest_slab_bytes}
    try:
        kept = KeptGpus(shm_gpus(count=gpus, gpu_bytes=gpu_bytes, **sizes), **sizes)
    except ValueError as error:
        return _refused(error)
    _log.info("keeping %d GPUs of %d bytes at %s", gpus, gpu_bytes, socket)
    return _keep(kept, Path(socket), linger_seconds)


def keep_cuda(
    *, gpu: str, uses_vmm: bool, socket: str | Path, linger_seconds: float | None = None
) -> int:
    """Keep the memory of one CUDA GPU until told to end; the exit status.

    Args:
        gpu: its UUID, as NVML writes it.
        uses_vmm: export slabs as descriptors; else as legacy CUDA IPC handles.
        socket: as for `keep_shm`; `SOCKET.no-mps` beside it stays an empty directory.
        linger_seconds: as for `keep_shm`.

    Returns:
        0 after an orderly end, 1 when it could not start or its GPU can make no slab any more (the
        reason is on stderr).
    """
    from aqua_daemon.keeper.cuda_gpu import CudaGpu
    from aqua_daemon.keeper.nvml_reader import NvmlReader
    from aqua_daemon.keeper.stuck import end_if_stuck

    _prepare_process()
    path = Path(socket)
    with contextlib.closing(NvmlReader(gpu)) as reader:
        reader.wait_for_first(FIRST_READING_SECONDS)
        kept = CudaGpu(
            name=gpu, uses_vmm=uses_vmm, reader=reader, no_mps=path.with_name(f"{path.name}.no-mps")
        )
        _log.info("keeping %s at %s", gpu, socket)
        is_over = end_if_stuck(is_lost=lambda: reader.is_lost, looked_at=lambda: kept.looked_at)
        try:
            return _keep(
                KeptGpus(
                    (kept,),
                    smallest_slab_bytes=SMALLEST_CUDA_SLAB_BYTES,
                    largest_slab_bytes=LARGEST_CUDA_SLAB_BYTES,
                ),
                path,
                linger_seconds,
            )
        finally:
            is_over.set()


def _keep(kept: KeptGpus, path: Path, linger_seconds: float | None) -> int:
    try:
        listening = ExclusiveSocket(path)
    except (AlreadyServed, OSError) as error:
        return _refused(error)
    with listening, kept:
        kept.look()
        asyncio.run(_serve(kept, listening, linger_seconds))
        return 1 if kept.failure else 0


def _refused(error: Exception) -> int:
    sys.stderr.write(f"aqua keeper: {error}\n")
    return 1


async def _serve(kept: KeptGpus, listening: ExclusiveSocket, linger_seconds: float | None) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.closing(
        KeeperServer(kept, listener=listening.listener, linger_seconds=linger_seconds)
    ) as server:
        for number in _ENDING:
            loop.add_signal_handler(number, server.stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        await server.finished.wait()


def _prepare_process() -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(message)s"
    )
    # Whoever sees the socket may ask the keeper to end: that waits until there is who hears it.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # what the kernel sends when a file lease is broken
    # A slab is one descriptor and a session two: the usual soft limit of 1,024 is soon reached.
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
