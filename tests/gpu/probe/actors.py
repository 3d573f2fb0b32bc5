"""Starts the processes that a step asks things of, talks to them, and kills them.

What can go wrong with a process is an answer: CUDA refuses (`Refused`), it does not answer in time
(`Silent`), or it ends (`Ended`). Does not cover what they do: that is acting.py.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from aqua_protos.framing import Disconnected, FrameReader, send_frame

from tests.gpu.probe.names import Times

ANSWER_SECONDS = 30.0
NAMESPACES = ("unshare", "--pid", "--fork", "--kill-child")


class Refused(Exception):
    """CUDA, or the kernel, said no: the text says how."""


class Silent(Exception):
    """No answer in time: the text says how long was waited."""


class Ended(Exception):
    """The process is gone: the text says how it ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a process answered; a descriptor in it is the receiver's to close."""

    number: int
    text: str
    times: Times
    descriptor: int | None


@dataclass(slots=True, kw_only=True)
class Ticket:
    """What memory is opened by, wherever it came from."""

    kind: str
    nbytes: int
    handle: str  # 64 bytes as hex, legacy only
    descriptor: int | None  # vmm only; as long as it is open here, the memory stays

    def close(self) -> None:
        """Idempotent."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class Actor:
    """One process; ends with the block it is used in."""

    def __init__(
        self, *, within: Sequence[str] = (), environment: dict[str, str] | None = None
    ) -> None:
        """*within* is a command that runs another, such as `unshare --pid --fork`."""
        mine, theirs = socket.socketpair()
        words = [*within, sys.executable, "-m", "tests.gpu.probe.acting", str(theirs.fileno())]
        self._process = subprocess.Popen(
            words,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )
        theirs.close()
        self._connection, self._reader = mine, FrameReader()

    @property
    def pid(self) -> int:
        """As this process sees it; within a namespace it is the runner's."""
        return self._process.pid

    def ask(
        self,
        verb: str,
        *,
        kind: str = "",
        nbytes: int = 0,
        number: int = 0,
        value: int = 0,
        text: str = "",
        descriptor: int | None = None,
        seconds: float = ANSWER_SECONDS,
    ) -> Reply:
        """Have one thing done.

        Raises:
            Refused, Silent, Ended: it was not done, or nobody knows.
        """
        told = {"kind": kind, "nbytes": nbytes, "number": number, "value": value, "text": text}
        request = {"verb": verb, "told": told, "with_descriptor": descriptor is not None}
        sent = [] if descriptor is None else [descriptor]
        try:
            send_frame(self._connection, json.dumps(request).encode(), sent)
            answer = json.loads(self._receive(seconds))
        except TimeoutError:
            raise Silent(f"no answer in {seconds:g} s") from None
        except OSError:
            raise Ended(self._how_it_ended()) from None
        received = self._reader.take_descriptors(int(answer["with_descriptor"]))
        if answer["error"]:
            raise Refused(answer["error"])
        return Reply(
            number=answer["number"],
            text=answer["text"],
            times=answer["times"],
            descriptor=received[0] if received else None,
        )

    def export(self, number: int, *, kind: str, nbytes: int) -> Ticket:
        """What another process can open the memory by."""
        reply = self.ask("export", number=number)
        return Ticket(kind=kind, nbytes=nbytes, handle=reply.text, descriptor=reply.descriptor)

    def open(self, ticket: Ticket, *, seconds: float = ANSWER_SECONDS) -> Reply:
        """Map the memory behind *ticket*, which stays the caller's."""
        return self.ask(
            "open",
            kind=ticket.kind,
            nbytes=ticket.nbytes,
            text=ticket.handle,
            descriptor=ticket.descriptor,
            seconds=seconds,
        )

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait(ANSWER_SECONDS)

    def leave(self) -> None:
        """Close the connection, at which the process ends by itself, and wait for that."""
        self._connection.close()
        try:
            self._process.wait(ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _at: TracebackType | None,
    ) -> None:
        self.kill()
        self._connection.close()
        self._reader.close()

    def _receive(self, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        while True:
            for frame in self._reader.frames():
                return frame
            self._connection.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                self._reader.read_from(self._connection)
            except Disconnected as error:
                raise ConnectionResetError from error

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return "the process closed its connection, and lives"
        if status < 0:
            return f"the process was ended by {signal.Signals(-status).name}"
        return f"the process ended with status {status}"


def outcome(ask: object, *, fine: str = "yes") -> str:
    """What came of *ask* (a callable) in a few words: *fine*, or what went wrong."""
    assert callable(ask)
    try:
        ask()
    except (Refused, Silent, Ended) as error:
        return str(error)
    return fine


def descriptors_of(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
