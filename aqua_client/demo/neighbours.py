"""Who else runs on the node: the owner of one GPU that has a burst, and a process on the others.

What the owner itself does is in `owner`; here are the commands, what it is told, and its end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from aqua_client.demo.happenings import OwnerSaid, TakenBack, Teller
from aqua_client.demo.plan import BURST_GPU, mib

ANSWER_SECONDS = 60.0  # starts of processes included, on two slow cores that are busy
END_SECONDS = 10.0


def owner_command(nbytes: int, *, lend_bytes: int, socket: str, keeper_socket: str) -> list[str]:
    """What to start: a process that uses so much of BURST_GPU and becomes `owner`."""
    return [
        *_load(BURST_GPU, nbytes, keeper_socket),
        *("--", sys.executable, "-m", "aqua_client.demo.owner", "--socket", socket),
        *("--keeper-socket", keeper_socket, "--gpu", BURST_GPU, "--lend", str(lend_bytes)),
    ]


def neighbour_command(gpus: Sequence[str], nbytes: int, *, keeper_socket: str) -> list[str]:
    """What to start: one process that uses so much of each of these GPUs, and ends with its input.

    So it ends with the demo, however that ends; else its keeper would live for it.
    """
    loads = [_load(gpu, nbytes, keeper_socket) for gpu in gpus]
    return [*(word for load in loads[:-1] for word in (*load, "--")), *loads[-1], "--follow"]


class Neighbour:
    """A process that says lines of JSON, and is heard until it ends."""

    def __init__(self, command: Sequence[str], *, tell: Teller) -> None:
        self._tell = tell
        self._said: dict[str, dict[str, float]] = {}
        self._loads = 0
        self._heard = threading.Condition()
        self._has_ended = False
        self._is_closed = False
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        self._listener = threading.Thread(target=self._listen, name="neighbour", daemon=True)
        self._listener.start()

    def wait_loaded(self, times: int = 1) -> bool:
        """Wait until it uses so many GPUs; False: it ended or took too long."""
        return self._wait(lambda: self._loads >= times)

    def close(self) -> None:
        """End it, and what it has started. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        with suppress(ProcessLookupError):  # all of it has ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._listener.join(END_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _wait(self, condition: Callable[[], bool]) -> bool:
        with self._heard:
            self._heard.wait_for(lambda: condition() or self._has_ended, ANSWER_SECONDS)
            return condition()

    def _listen(self) -> None:
        """Take what it says, line by line, until it ends."""
        for line in self._process.stdout or ():
            if line.strip():
                self._hear(line.strip())
        with self._heard:
            self._has_ended = True
            self._heard.notify_all()

    def _hear(self, line: str) -> None:
        try:
            what = json.loads(line)
            event, gpu = str(what.pop("event")), str(what.pop("gpu", BURST_GPU))
            figures = {name: float(value) for name, value in what.items()}
        except (ValueError, AttributeError, KeyError, TypeError):
            self._tell(OwnerSaid(text=f"a neighbour wrote: {line}"))
            return
        if event != "loaded" or gpu == BURST_GPU:  # of the others the screen says enough
            self._tell(OwnerSaid(text=in_words(gpu, event, figures)))
        with self._heard:
            self._said[event] = figures
            self._loads += event == "loaded"
            self._heard.notify_all()


class Owner(Neighbour):
    """The owner of BURST_GPU."""

    _lent_again_bytes = 0

    def wait_lending(self) -> bool:
        """Wait until it is there and lends; False: it ended or took too long."""
        return self._wait(lambda: "lends" in self._said)

    def burst(self) -> None:
        """Have it take its memory back; this does not wait."""
        self._order("burst")

    def wait_grown(self) -> bool:
        """Wait until it uses what it got back; False: it got nothing, or no answer."""
        return self._wait(lambda: "uses" in self._said)

    def lend_again(self) -> bool:
        """Have it use little again, and wait until it lends; False: it does not answer."""
        self._order("quiet")
        return self._wait(lambda: "lends again" in self._said)

    def note_lent(self, nbytes: int) -> None:
        """So much of the GPU is lent now: once it lends again, that is what came of it."""
        if "lends again" in self._said and nbytes > self._lent_again_bytes:
            self._lent_again_bytes = nbytes
            self._tell(OwnerSaid(text=f"{BURST_GPU}: {mib(nbytes)} are lent again"))
            self._tell_taken_back()

    def taken_back(self) -> TakenBack | None:
        """What came of it; None while it has no answer."""
        reclaimed = self._said.get("reclaimed")
        if reclaimed is None:
            return None
        return TakenBack(
            gpu=BURST_GPU,
            asked_bytes=int(reclaimed["asked_bytes"]),
            revoked_bytes=int(reclaimed["revoked_bytes"]),
            freed_bytes=int(reclaimed["freed_bytes"]),
            quarantined_bytes=int(reclaimed["quarantined_bytes"]),
            seconds=reclaimed["seconds"],
            lent_again_bytes=self._lent_again_bytes,
        )

    def _hear(self, line: str) -> None:
        super()._hear(line)
        self._tell_taken_back()

    def _tell_taken_back(self) -> None:
        taken = self.taken_back()
        if taken is not None:
            self._tell(taken)

    def _order(self, line: str) -> None:
        with suppress(OSError):  # it has ended, which its listener knows
            if self._process.stdin is not None:
                self._process.stdin.write(f"{line}\n")
                self._process.stdin.flush()


def in_words(gpu: str, event: str, figures: Mapping[str, float]) -> str:
    """What a neighbour said, for people."""
    shown = {name: mib(int(value)) for name, value in figures.items() if name.endswith("bytes")}
    match event:
        case "loaded":
            return f"{gpu}: a process uses {shown.get('bytes', '?')} of it"
        case "lends":
            return f"{gpu}: its owner has little to do, and lends"
        case "reclaimed":
            late = figures["quarantined_bytes"]
            return (
                f"{gpu}: a burst: {shown['asked_bytes']} asked back, {shown['freed_bytes']} freed "
                f"in {figures['seconds']:.2f} s"
            ) + (f", {shown['quarantined_bytes']} quarantined" if late else "")
        case "uses":
            return f"{gpu}: its owner uses {shown['nbytes']} more itself now"
        case "lends again":
            return f"{gpu}: the burst is over, its owner lends again"
        case _:
            return f"{gpu}: {event}"


def _load(gpu: str, nbytes: int, keeper_socket: str) -> list[str]:
    return [
        *(sys.executable, "-m", "aqua_daemon", "load", "--gpu", gpu, "--bytes", str(nbytes)),
        *("--keeper-socket", keeper_socket),
    ]
