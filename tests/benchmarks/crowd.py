"""Many sessions in a few processes, told what to do line by line.

    python -m tests.benchmarks.crowd SESSIONS   # its part of the crowd

Each line on stdin is a command, each answer one line of JSON: `borrow N` gives every session N of
the smallest slabs, `grants S` has one session after the other borrow and give back for S seconds,
`arrivals` says when each was told of a revoke. Revoked slabs are acknowledged at once, unmapped as
they are. Clocks are the machine's monotonic one, so that processes may be compared.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from aqua_client.counters import Counters
from aqua_client.records import HostRoom, LeaseUse, RevokeNotice, SafetyClass
from aqua_client.session import Session
from aqua_client.settings import ClientSettings
from tests.nodes import Node, environment, read_line, wait_until

CALL_SECONDS = 10.0
ANSWER_SECONDS = 120.0
WARM_ROUNDS = 10


class Member:
    """One session and what it holds; it maps nothing."""

    def __init__(self) -> None:
        settings = replace(
            ClientSettings.from_environment(),
            connect_seconds=CALL_SECONDS,
            call_seconds=CALL_SECONDS,
        )
        self.revoked_at: list[float] = []
        self._leases: list[str] = []
        self._notices: queue.SimpleQueue[RevokeNotice | None] = queue.SimpleQueue()
        self._acknowledging = threading.Thread(target=self._acknowledge, daemon=True)
        self._acknowledging.start()
        self.session = Session(settings, self, Counters())
        self.session.start()

    def borrow(self) -> None:
        """One slab more, kept."""
        self._leases.append(self._acquire())

    def borrow_and_return(self) -> float:
        """Seconds from the call to a grant with its descriptor in hand."""
        start = time.perf_counter()
        lease_id = self._acquire()
        granted = time.perf_counter()
        self.session.release([lease_id], self.host_room())
        return granted - start

    def close(self) -> None:
        self._notices.put(None)
        self._acknowledging.join(CALL_SECONDS)
        self.session.close(seconds=CALL_SECONDS)

    def _acquire(self) -> str:
        grant = self.session.acquire(
            self.session.smallest_slab_bytes, SafetyClass.CACHE, seconds=CALL_SECONDS
        )
        assert grant.descriptor is not None
        os.close(grant.descriptor)
        return grant.lease_id

    def _acknowledge(self) -> None:
        while (notice := self._notices.get()) is not None:
            self._leases = [one for one in self._leases if one not in notice.lease_ids]
            self.session.acknowledge(notice.lease_ids, self.host_room())

    def revoked(self, notice: RevokeNotice) -> None:
        self.revoked_at.append(time.monotonic())
        self._notices.put(notice)

    def leases_ended(self, lease_ids: Sequence[str]) -> None:
        pass

    def leases_lost(self, lease_ids: Sequence[str], reason: str) -> None:
        pass

    def attached(self) -> None:
        pass

    def detached(self, reason: str) -> None:
        pass

    def lease_uses(self) -> Sequence[LeaseUse]:
        return [
            LeaseUse(lease_id=lease_id, used_bytes=1, copy_bytes=1, idle_seconds=0.0)
            for lease_id in tuple(self._leases)
        ]

    def host_room(self) -> HostRoom:
        return HostRoom(revision=0, nbytes=0)


class Crowd:
    """Its processes, from outside."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def ask(self, command: str) -> list[Mapping[str, list[float]]]:
        """Tell every process, then hear what each says."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{command}\n")
            process.stdin.flush()
        return [self._answer(process) for process in self._processes]

    def _answer(self, process: subprocess.Popen[str]) -> Mapping[str, list[float]]:
        assert process.stdout is not None
        line = read_line(process.stdout, seconds=ANSWER_SECONDS)
        assert line, f"a part of the crowd has ended, or hangs: {process.poll()}"
        found: Mapping[str, list[float]] = json.loads(line)
        return found


@contextmanager
def crowd(node: Node, *, sessions: int, processes: int, home_gpu: str = "") -> Iterator[Crowd]:
    """So many sessions, all attached."""
    words = [sys.executable, "-m", "tests.benchmarks.crowd", str(sessions // processes)]
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    words,
                    env=environment(AQUA_SOCKET=node.socket, AQUA_HOME_GPU=home_gpu),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(processes)
        ]
        found = Crowd(started)
        try:
            found.ask("attached")
            yield found
        except BaseException:
            for process in started:
                process.kill()
            raise


def _obey(members: Sequence[Member], words: Sequence[str]) -> dict[str, object]:
    match words:
        case ["attached"]:
            wait_until(
                lambda: all(member.session.attached for member in members),
                seconds=ANSWER_SECONDS,
                what="the crowd is attached",
            )
            return {}
        case ["borrow", count]:
            for member in members:
                for _ in range(int(count)):
                    member.borrow()
            return {}
        case ["grants", seconds]:
            for member in members:
                for _ in range(WARM_ROUNDS):
                    member.borrow_and_return()
            start, taken = time.monotonic(), []
            while time.monotonic() < start + float(seconds):
                taken += [member.borrow_and_return() for member in members]
            return {"seconds": taken, "span": [start, time.monotonic()]}
        case ["arrivals"]:
            return {"at": [at for member in members for at in member.revoked_at[:1]]}  # not repeats
        case _:
            msg = f"no such command: {words}"
            raise ValueError(msg)


def main() -> None:
    # Many servers in one interpreter: none waits 5 ms for another, as it would not on its own.
    sys.setswitchinterval(0.0005)
    members = [Member() for _ in range(int(sys.argv[1]))]
    for line in sys.stdin:
        print(json.dumps(_obey(members, line.split())), flush=True)
    for member in members:
        member.close()


if __name__ == "__main__":
    main()
