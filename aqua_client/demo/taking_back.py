"""Plays the owner in the middle of a run: grows on the GPU that lends most, and takes it back.

What the owner itself does is in `owner`; here are the choice of the GPU, its start and its end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

from aqua_client.demo.happenings import GpuBytes, OwnerSaid, Teller
from aqua_client.demo.plan import MIB, mib
from aqua_client.demo.summary import TakenBack

# The broker never lends a GPU's last tenth; an owner that grows into it makes it revoke one slab.
RESERVE_FRACTION = 0.1
INTO_RESERVE_BYTES = 2 * MIB
LARGEST_SLAB_BYTES = 32 * MIB

ANSWER_SECONDS = 30.0  # for the reclaim, start of the process included
END_SECONDS = 10.0


def gpu_to_take(gpus: Sequence[GpuBytes]) -> GpuBytes | None:
    """The GPU that lends most; None where none lends."""
    lending = [gpu for gpu in gpus if gpu.lent]
    return max(lending, key=lambda gpu: gpu.lent, default=None)


def growth_bytes(gpu: GpuBytes) -> int:
    """How much its owner comes to use on a GPU before it asks for the rest.

    Where several slabs are lent it reaches a little into the reserve, so that one is taken for
    that; otherwise it stays well clear of it, and leaves what is lent to be asked for.
    """
    reserve = int(gpu.total * RESERVE_FRACTION)
    if gpu.lent > LARGEST_SLAB_BYTES:
        return max(gpu.free - reserve + INTO_RESERVE_BYTES, MIB)
    return max(gpu.free // 2 - reserve, MIB)


def owner_command(gpu: GpuBytes, *, socket: str, keeper_socket: str) -> list[str]:
    """What to start: a process that uses the GPU and becomes `owner`."""
    return [
        *(sys.executable, "-m", "aqua_daemon", "load"),
        *("--gpu", gpu.gpu, "--bytes", str(growth_bytes(gpu))),
        *("--keeper-socket", keeper_socket, "--"),
        *(sys.executable, "-m", "aqua_client.demo.owner", "--socket", socket),
        *("--gpu", gpu.gpu, "--reclaim", str(gpu.lent), "--lend", str(gpu.total)),
    ]


class Owner:
    """The owner's process on one GPU."""

    def __init__(self, gpu: GpuBytes, command: Sequence[str], *, tell: Teller) -> None:
        self._gpu = gpu
        self._tell = tell
        self._own_bytes = growth_bytes(gpu)
        self._said: dict[str, dict[str, float]] = {}
        self._answered = threading.Event()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        self._listener = threading.Thread(target=self._listen, name="owner", daemon=True)
        self._listener.start()
        tell(
            OwnerSaid(
                text=f"{gpu.gpu} lends {mib(gpu.lent)}; its owner starts a process that uses "
                f"{mib(self._own_bytes)}, and asks for the rest"
            )
        )

    def wait_answered(self) -> bool:
        """Wait until it has got its memory back; False: it ended or took too long."""
        return self._answered.wait(ANSWER_SECONDS) and "reclaimed" in self._said

    def lend_again(self) -> None:
        """Let it lend again and end."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._tell(OwnerSaid(text=f"it did not end within {END_SECONDS:.0f} s: killed"))
        self.close()

    def close(self) -> None:
        """End it, whatever it does. Idempotent."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._listener.join(END_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def taken_back(self) -> TakenBack | None:
        """What came of it; None when it never got an answer."""
        reclaimed = self._said.get("reclaimed")
        if reclaimed is None:
            return None
        return TakenBack(
            gpu=self._gpu.gpu,
            own_bytes=self._own_bytes,
            asked_bytes=int(reclaimed["asked_bytes"]),
            revoked_bytes=int(reclaimed["revoked_bytes"]),
            freed_bytes=int(reclaimed["freed_bytes"]),
            quarantined_bytes=int(reclaimed["quarantined_bytes"]),
            seconds=reclaimed["seconds"],
            lent_again_bytes=int(self._said.get("lends again", {}).get("offered_bytes", 0)),
        )

    def _listen(self) -> None:
        """Take what it says, line by line, until it ends."""
        for line in self._process.stdout or ():
            self._hear(line.strip())
        self._answered.set()

    def _hear(self, line: str) -> None:
        try:
            what = json.loads(line)
            event = str(what.pop("event"))
            figures = {name: float(value) for name, value in what.items() if name != "gpu"}
        except (ValueError, AttributeError, KeyError, TypeError):
            if line:
                self._tell(OwnerSaid(text=f"it wrote: {line}"))
            return
        self._said[event] = figures
        self._tell(OwnerSaid(text=in_words(self._gpu.gpu, event, figures)))
        if event == "reclaimed":
            self._answered.set()


def in_words(gpu: str, event: str, figures: Mapping[str, float]) -> str:
    """What the owner said, for people."""
    shown = {name: mib(int(value)) for name, value in figures.items() if name.endswith("bytes")}
    match event:
        case "loaded":
            return f"{gpu} uses {shown.get('bytes', '?')} itself now"
        case "reclaimed":
            late = figures["quarantined_bytes"]
            return (
                f"{gpu} asked for {shown['asked_bytes']} back: {shown['revoked_bytes']} revoked, "
                f"{shown['freed_bytes']} freed in {figures['seconds']:.2f} s"
            ) + (f", {shown['quarantined_bytes']} quarantined" if late else "")
        case "lends again":
            return f"{gpu} lends again, up to {shown['offered_bytes']}"
        case _:
            return f"{gpu} {event}"
