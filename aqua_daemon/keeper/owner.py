"""`aqua-daemon load`: a process that uses memory of an shm GPU, as an engine would of a real one.

It registers its own pid with the keeper, and the registration lives as long as the process does.
What does not fit at once is taken step by step: what fits now uses up the GPU's reserve, the broker
takes lent memory back to make it whole again, and the next step fits. One that follows its input
uses what each line there says next, as an engine does whose load rises and falls.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from aqua_protos.framing import FrameReader, FrameTooLarge, send_frame
from aqua_protos.keeper_pb2 import KeeperReply, KeeperRequest, RegisterOwner
from google.protobuf.message import DecodeError

DEADLINE_SECONDS = 30.0
ANSWER_SECONDS = 10.0  # a keeper answers in well under a millisecond, unless it hangs
_STEP_SECONDS = 0.05


def run(
    gpu: str,
    nbytes: int,
    keeper_socket: str | Path,
    command: Sequence[str] = (),
    *,
    deadline_seconds: float = DEADLINE_SECONDS,
    sizes: Iterable[int] | None = None,
) -> int:
    """Use *nbytes* of *gpu*, then become *command*, or wait to be ended; the exit status.

    Says `{"event": "loaded", ...}` on stdout once it has all of them, and again for each of
    *sizes*, if those are given; it ends with them.

    Returns:
        1 when it did not get them in time, was refused, or the keeper ended (stderr says which);
        0 when it was interrupted. It does not return from *command*.
    """
    try:
        with contextlib.closing(_KeeperCall(Path(keeper_socket))) as keeper:
            for size in itertools.chain((nbytes,), sizes or ()):
                has_bytes = _grow(keeper, gpu, size, time.monotonic() + deadline_seconds)
                if has_bytes < size:
                    message = (
                        f"{has_bytes} of {size} bytes on {gpu} after {deadline_seconds:g} s: end "
                        "something there, or ask for less"
                    )
                    return _failed(message)
                _say_loaded(gpu, size)
            if sizes is not None:
                return 0
            if command:
                return _become(command)
            keeper.wait_for_end()
            return _failed("the keeper has ended, and this registration with it")
    except KeyboardInterrupt:
        return 0
    except (OSError, DecodeError, FrameTooLarge, ValueError) as error:
        return _failed(f"{keeper_socket}: {error}")


def _grow(keeper: _KeeperCall, gpu: str, nbytes: int, deadline: float) -> int:
    has_bytes = keeper.register(gpu, nbytes)
    while has_bytes < nbytes and time.monotonic() < deadline:
        keeper.wait_for_end(seconds=_STEP_SECONDS)
        has_bytes = keeper.register(gpu, nbytes)
    return has_bytes


def _say_loaded(gpu: str, nbytes: int) -> None:
    line = {"event": "loaded", "gpu": gpu, "bytes": nbytes, "pid": os.getpid()}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _become(command: Sequence[str]) -> int:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it; a program of its own may not
    try:
        os.execvp(command[0], list(command))  # noqa: S606 - that is what the caller asked for
    except OSError as error:
        return _failed(f"can't run {command[0]!r}: {error.strerror}")


def _failed(message: str) -> int:
    sys.stderr.write(f"aqua-daemon load: {message}\n")
    return 1


class _KeeperCall:
    """One connection to a keeper, one question at a time."""

    def __init__(self, path: Path) -> None:
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connection.settimeout(ANSWER_SECONDS)
            self._connection.connect(str(path))
        except OSError:
            self._connection.close()
            raise
        self._reader = FrameReader(accepts_descriptors=False)
        self._asked = 0

    def register(self, gpu: str, nbytes: int) -> int:
        """Use as much of *nbytes* as fits now; what this process has then.

        Raises:
            ValueError: the keeper refused; the message is its own.
            OSError: it did not answer.
        """
        self._asked += 1
        owner = RegisterOwner(gpu=gpu, nbytes=nbytes, what_fits=True)
        request = KeeperRequest(request_id=self._asked, register_owner=owner)
        send_frame(self._connection, request.SerializeToString())
        reply = self._reply()
        if reply.WhichOneof("kind") == "failed":
            msg = f"{reply.failed.code}: {reply.failed.message}"
            raise ValueError(msg)
        return reply.owner_registered.nbytes

    def wait_for_end(self, *, seconds: float | None = None) -> None:
        """Return when the keeper has closed the connection, or after *seconds*."""
        select.select([self._connection], [], [], seconds)

    def close(self) -> None:
        self._connection.close()

    def _reply(self) -> KeeperReply:
        while True:
            for payload in self._reader.frames():
                return KeeperReply.FromString(payload)
            self._reader.read_from(self._connection)
