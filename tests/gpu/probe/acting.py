"""A process that does what a step tells it: keeper, client, ex-tenant or stranger.

    python -m tests.gpu.probe.acting DESCRIPTOR

The other end is actors.py. One request at a time; what CUDA refuses is an answer, a dead or silent
process is one too.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field

import numpy as np
from aqua_protos.framing import Disconnected, FrameReader, send_frame

from tests.gpu.probe import content, kinds
from tests.gpu.probe.driver import DriverError, call, timed, use_device
from tests.gpu.probe.kinds import Held
from tests.gpu.probe.launching import Launches
from tests.gpu.probe.names import Times


@dataclass(slots=True, kw_only=True)
class Said:
    """What one request came to; the wire's form of it is JSON, and descriptors beside it."""

    number: int = 0
    text: str = ""
    error: str = ""
    times: Times = field(default_factory=dict)
    descriptor: int | None = None


@dataclass(slots=True, kw_only=True)
class Told:
    """One request's arguments."""

    kind: str = ""
    nbytes: int = 0
    number: int = 0
    value: int = 0
    text: str = ""
    descriptor: int | None = None


class Acting:
    """The verbs. Memory is named by small numbers, as its owner got them."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}
        self._ordinal = 0
        self._launches = Launches(0, by_torch=False)

    def do(self, verb: str, told: Told) -> Said:
        """One request; what CUDA refuses comes back as `error`."""
        said = Said()
        try:
            getattr(self, f"_do_{verb}")(told, said)
        except DriverError as error:
            said.error = str(error)
        except OSError as error:
            said.error = f"{type(error).__name__}: {error.strerror}"
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here is the answer
            first = (str(error).splitlines() or [""])[0]
            said.error = f"{type(error).__name__}: {first[:120]}"
        return said

    def _do_init(self, _told: Told, _said: Said) -> None:
        """The driver, without a context."""
        call("cuInit", 0)

    def _do_context(self, told: Told, said: Said) -> None:
        self._ordinal = told.number
        use_device(told.number, said.times)

    def _do_become(self, told: Told, _said: Said) -> None:
        """Another user, for good."""
        os.setgroups([])
        os.setresgid(told.number, told.number, told.number)
        os.setresuid(told.number, told.number, told.number)

    def _do_pid(self, _told: Told, said: Said) -> None:
        said.number = os.getpid()

    def _do_allocate(self, told: Told, said: Said) -> None:
        held = kinds.allocate(told.kind, told.nbytes, self._ordinal, said.times)
        said.number = self._keep(held)

    def _do_create(self, told: Told, said: Said) -> None:
        """Memory without a mapping: what a keeper without a context can have."""
        held = kinds.allocate(told.kind, told.nbytes, self._ordinal, said.times, mapped=False)
        said.number = self._keep(held)

    def _do_export(self, told: Told, said: Said) -> None:
        handle, said.descriptor = kinds.export(self._held[told.number], said.times)
        said.text = handle.hex()

    def _do_open(self, told: Told, said: Said) -> None:
        handle = bytes.fromhex(told.text)
        opened = kinds.open_exported(
            told.kind, told.nbytes, handle, told.descriptor, self._ordinal, said.times
        )
        said.number = self._keep(opened)

    def _do_pointer(self, told: Told, said: Said) -> None:
        said.number = self._held[told.number].pointer

    def _do_fill(self, told: Told, _said: Said) -> None:
        held = self._held[told.number]
        content.fill(held.pointer, held.nbytes, told.value)

    def _do_read(self, told: Told, said: Said) -> None:
        """The first bytes of it."""
        said.text = content.read(self._held[told.number].pointer, told.nbytes).hex()

    def _do_count(self, told: Told, said: Said) -> None:
        """How many of its bytes equal a value."""
        held = self._held[told.number]
        said.number = content.count(held.pointer, held.nbytes, told.value)

    def _do_close(self, told: Told, said: Said) -> None:
        """Forgets it only if CUDA agrees, so that it can be closed twice on purpose."""
        kinds.close(self._held[told.number], said.times)

    def _do_free(self, told: Told, said: Said) -> None:
        kinds.free(self._held[told.number], said.times)

    def _do_sample(self, told: Told, said: Said) -> None:
        """How many 2 MiB pages begin with 64 bytes of a value; a fast look over a lot."""
        held, page = self._held[told.number], 2 * 2**20
        wanted = bytes([told.value]) * 64
        starts = range(held.pointer, held.pointer + held.nbytes, page)
        said.number = sum(content.read(start, 64) == wanted for start in starts)

    def _do_torch(self, told: Told, said: Said) -> None:
        """What torch needs to have one small tensor on a device."""
        import torch

        with timed(said.times, "torch"):
            torch.zeros(1, device=f"cuda:{told.number}")
            torch.cuda.synchronize()

    def _do_pin(self, told: Told, said: Said) -> None:
        """Pin touched host memory, and unpin it."""
        buffer = np.ones(told.nbytes, dtype=np.uint8)
        with timed(said.times, "pin"):
            call("cuMemHostRegister", buffer.ctypes.data, told.nbytes, 0)
        with timed(said.times, "unpin"):
            call("cuMemHostUnregister", buffer.ctypes.data)

    def _do_launch(self, told: Told, _said: Said) -> None:
        """Begin a user's loop of launches, by torch or by the driver, as the text says."""
        self._launches = Launches(self._ordinal, by_torch=told.text == "torch")
        self._launches.start()

    def _do_launched(self, _told: Told, said: Said) -> None:
        """What the launches since the last look took."""
        said.times = self._launches.take()

    def _do_stop(self, _told: Told, said: Said) -> None:
        said.error = self._launches.stop()

    def _do_fork(self, _told: Told, said: Said) -> None:
        """A child that does nothing, keeps everything inherited, and lives until it is killed."""
        said.number = os.fork()
        if said.number == 0:
            while True:
                signal.pause()

    def _keep(self, held: Held) -> int:
        name = len(self._held) + 1
        self._held[name] = held
        return name


def main() -> None:
    """Serve the descriptor that the first argument names, until its other end closes."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    reader, acting = FrameReader(), Acting()
    try:
        while True:
            for frame in reader.frames():
                _answer(connection, reader, acting, frame)
            reader.read_from(connection)
    except (Disconnected, ConnectionError):
        os._exit(0)  # no destructor may wait for a peer that is gone


def _answer(connection: socket.socket, reader: FrameReader, acting: Acting, frame: bytes) -> None:
    request = json.loads(frame)
    told = Told(**request["told"])
    if request["with_descriptor"]:
        (told.descriptor,) = reader.take_descriptors(1)
    begun = time.perf_counter()
    said = acting.do(request["verb"], told)
    said.times.setdefault("whole", time.perf_counter() - begun)
    kinds.close_descriptor(told.descriptor)
    sent = [] if said.descriptor is None else [said.descriptor]
    payload = {"number": said.number, "text": said.text, "error": said.error, "times": said.times}
    send_frame(connection, json.dumps({**payload, "with_descriptor": bool(sent)}).encode(), sent)
    kinds.close_descriptor(said.descriptor)


if __name__ == "__main__":
    main()
