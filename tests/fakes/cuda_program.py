"""A process that does with CUDA what a test tells it, line by line.

    with Program(node.environment()) as program:
        program.run("use_device(0); p = ok(d.cuMemAlloc(2 << 20))")
        assert program.ask("d.cuMemFree(p)[0]") == 0

Runs as `python -m tests.fakes.cuda_program`; `d` is the driver of its environment, fake or real.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_ROOT = Path(__file__).resolve().parents[2]
_END_SECONDS = 20.0


class ProgramFailed(AssertionError):
    """A line raised in the program; its traceback."""


class Program:
    """A process of a node that obeys, and ends with the block that it was begun for."""

    def __init__(self, environment: dict[str, str], *begin: str) -> None:
        self._link, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.cuda_program", str(theirs.fileno())],
            cwd=_ROOT,
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        self.pid = self._process.pid
        try:
            for lines in begin:
                self.run(lines)
        except ProgramFailed:
            self.close()
            raise

    def run(self, lines: str) -> None:
        """Execute them; the names that they bind stay."""
        self.begin(lines)
        self.finish()

    def begin(self, lines: str) -> None:
        """Let it begin with them, and do not wait."""
        self._send({"run": lines})

    def ask(self, expression: str) -> Any:  # noqa: ANN401 - whatever JSON can carry
        """What an expression is there."""
        self._send({"ask": expression})
        return self.finish()

    def finish(self) -> Any:  # noqa: ANN401 - whatever JSON can carry
        """Wait for what it was told."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise ProgramFailed(f"the program ended: {self._process.wait(_END_SECONDS)}")
        answer = json.loads(line)
        if "failed" in answer:
            raise ProgramFailed(answer["failed"])
        return answer["value"]

    def send_descriptor(self, descriptor: int) -> None:
        """It takes it by `receive_descriptor()`."""
        socket.send_fds(self._link, [b"."], [descriptor])

    def receive_descriptor(self) -> int:
        """What it gave by `send_descriptor(fd)`, the caller's to close."""
        return socket.recv_fds(self._link, 1, 1)[1][0]

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(_END_SECONDS)

    @property
    def exit_status(self) -> int | None:
        """None: it runs."""
        return self._process.poll()

    def close(self) -> None:
        """Let it end by itself; idempotent."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        self._process.wait(_END_SECONDS)
        self._process.stdout.close()
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, order: dict[str, str]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()


class _Names:
    """What lines find in the program beside `d` and modules."""

    def __init__(self, driver: Any, link: socket.socket) -> None:  # noqa: ANN401 - a module
        self._driver = driver
        self._link = link

    def ok(self, result: tuple[Any, ...]) -> Any:  # noqa: ANN401 - what the call returned
        assert int(result[0]) == 0, result
        return result[1] if len(result) == 2 else result[1:]

    def use_device(self, ordinal: int) -> Any:  # noqa: ANN401 - a context
        self.ok(self._driver.cuInit(0))
        device = self.ok(self._driver.cuDeviceGet(ordinal))
        context = self.ok(self._driver.cuDevicePrimaryCtxRetain(device))
        self.ok(self._driver.cuCtxSetCurrent(context))
        return context

    def handle_of(self, pointer: Any) -> str:  # noqa: ANN401 - a pointer
        handle = self.ok(self._driver.cuIpcGetMemHandle(pointer))
        return ctypes.string_at(handle.getPtr(), 64).hex()

    def open_handle(self, content: str, flags: int = 1) -> Any:  # noqa: ANN401 - what the call returned
        handle = self._driver.CUipcMemHandle()
        ctypes.memmove(handle.getPtr(), bytes.fromhex(content), 64)
        return self._driver.cuIpcOpenMemHandle(handle, flags)

    def read(self, pointer: Any, nbytes: int) -> str:  # noqa: ANN401 - a pointer
        there = bytearray(nbytes)
        self.ok(self._driver.cuMemcpyDtoH(there, pointer, nbytes))
        return there.hex()

    def properties(self, ordinal: int, *, exportable: bool = True) -> Any:  # noqa: ANN401 - a struct
        d = self._driver
        wanted = d.CUmemAllocationProp()
        wanted.type = d.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        wanted.location.type = d.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        wanted.location.id = ordinal
        if exportable:
            kinds = d.CUmemAllocationHandleType
            wanted.requestedHandleTypes = kinds.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        return wanted

    def access(self, ordinal: int) -> Any:  # noqa: ANN401 - a struct
        d = self._driver
        wanted = d.CUmemAccessDesc()
        wanted.location.type = d.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        wanted.location.id = ordinal
        wanted.flags = d.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        return wanted

    def send_descriptor(self, descriptor: int) -> None:
        socket.send_fds(self._link, [b"."], [descriptor])

    def receive_descriptor(self) -> int:
        return socket.recv_fds(self._link, 1, 1)[1][0]


def main() -> None:
    from cuda.bindings import driver

    sys.stdout, out = sys.stderr, sys.stdout  # what a line prints is no answer
    with socket.socket(fileno=int(sys.argv[1])) as link:
        helpers = _Names(driver, link)
        names = {name: getattr(helpers, name) for name in dir(helpers) if name[0] != "_"}
        space: dict[str, Any] = {"d": driver, "ctypes": ctypes, "os": os, **names}
        for line in sys.stdin:
            order = json.loads(line)
            try:
                if "run" in order:
                    exec(order["run"], space)  # noqa: S102 - the test's own lines
                    answer: dict[str, object] = {"value": None}
                else:
                    answer = {"value": eval(order["ask"], space)}  # noqa: S307 - the test's own
            except Exception:  # noqa: BLE001 - told to the test
                answer = {"failed": traceback.format_exc()}
            out.write(json.dumps(answer) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
