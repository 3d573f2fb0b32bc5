"""A GPU that is left alone: asked for, waited for, held, ended."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aqua_protos import broker_pb2

from aqua_daemon.ctl.link import Link, Refused, Unreachable, opened

STILL_SECONDS = 5.0  # a slab that is being made or freed takes milliseconds
LOOK_SECONDS = 0.1
MOVING = {broker_pb2.LEASE_STATE_ALLOCATING, broker_pb2.LEASE_STATE_FREEING}
Wait = Callable[[float], object]


@contextmanager
def quiet(path: Path, gpu: str, *, seconds: float, timeout: float) -> Iterator[float]:
    """The GPU is left alone for the length of the block, or *seconds*; yields how long that is.

    Raises:
        Unreachable: there is no daemon.
        Refused: the caller is no admin, or there is no such GPU.
    """
    with opened(path, seconds=timeout) as link:
        lasts = _ask(link, gpu, seconds)
        _await_still(link, gpu)
        try:
            yield lasts
        finally:
            # Without an answer it ends with this session a moment later.
            with suppress(Unreachable, Refused):
                _ask(link, gpu, 0.0)


def is_still(state: broker_pb2.GetStateReply, gpu: str) -> bool:
    """Whether no keeper makes or frees a slab there at this moment."""
    return not any(lease.lender_gpu == gpu and lease.state in MOVING for lease in state.leases)


def _ask(link: Link, gpu: str, seconds: float) -> float:
    request = broker_pb2.QuiesceRequest(request_id=secrets.token_hex(16), gpu=gpu, seconds=seconds)
    return link.call("Quiesce", request, broker_pb2.QuiesceReply).seconds


def _await_still(link: Link, gpu: str) -> None:
    """What was ordered before the GPU became quiet still comes and goes: wait for that."""
    wait = threading.Event().wait
    for _ in range(int(STILL_SECONDS / LOOK_SECONDS)):
        state = link.call("GetState", broker_pb2.GetStateRequest(), broker_pb2.GetStateReply)
        if is_still(state, gpu):
            return
        wait(LOOK_SECONDS)
