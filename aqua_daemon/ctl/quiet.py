"""A GPU that is left alone: asked for, waited for, held, ended."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aqua_protos import broker_pb2
from aqua_protos.agreement import TAKE_BACK

from aqua_daemon.core.sizes import LONGEST_REVOKE_SECONDS
from aqua_daemon.ctl.link import Link, Refused, Unreachable, opened

STILL_SECONDS = 5.0  # a slab that is being made or freed takes milliseconds
LOOK_SECONDS = 0.1
MOVING = {broker_pb2.LEASE_STATE_ALLOCATING, broker_pb2.LEASE_STATE_FREEING}
COMING = MOVING | {broker_pb2.LEASE_STATE_LEASED, broker_pb2.LEASE_STATE_REVOKING}
Wait = Callable[[float], object]


@contextmanager
def quiet(
    path: Path, gpu: str, *, seconds: float, timeout: float, takes_back: bool = False
) -> Iterator[float]:
    """The GPU is left alone for the length of the block, or *seconds*; yields how long that is.

    *takes_back*: what is lent there goes back before that, but for what does not come in time, and
    but with a daemon that does not know how.

    Raises:
        Unreachable: there is no daemon.
        Refused: the caller is no admin, or there is no such GPU.
    """
    with opened(path, seconds=timeout) as link:
        if takes_back and link.knows(TAKE_BACK):
            _ask(link, gpu, LONGEST_REVOKE_SECONDS, takes_back=True)
            _await_none(link, gpu, COMING, seconds=LONGEST_REVOKE_SECONDS)
        lasts = _ask(link, gpu, seconds)  # from now on
        _await_none(link, gpu, MOVING, seconds=STILL_SECONDS)
        try:
            yield lasts
        finally:
            # Without an answer it ends with this session a moment later.
            with suppress(Unreachable, Refused):
                _ask(link, gpu, 0.0)


def has_any(state: broker_pb2.GetStateReply, gpu: str, states: Collection[int]) -> bool:
    """Whether a slab there is in one of these states."""
    return any(lease.lender_gpu == gpu and lease.state in states for lease in state.leases)


def _ask(link: Link, gpu: str, seconds: float, *, takes_back: bool = False) -> float:
    request = broker_pb2.QuiesceRequest(
        request_id=secrets.token_hex(16), gpu=gpu, seconds=seconds, take_back=takes_back
    )
    return link.call("Quiesce", request, broker_pb2.QuiesceReply).seconds


def _await_none(link: Link, gpu: str, states: Collection[int], *, seconds: float) -> None:
    """What was ordered before, or now, still comes and goes: wait for that, but not for ever."""
    wait = threading.Event().wait
    for _ in range(int(seconds / LOOK_SECONDS)):
        state = link.call("GetState", broker_pb2.GetStateRequest(), broker_pb2.GetStateReply)
        if not has_any(state, gpu, states):
            return
        wait(LOOK_SECONDS)
