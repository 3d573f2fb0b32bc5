"""A tenant's process: borrows slabs, looks at their bytes, pages tensors, and says what it saw.

    python -m tests.contract.tenant

One JSON line for each order. Uses the client library as a server would, and below it the session
and the memory, where the contract is about slabs.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import aqua_client
from aqua_client import cuda_driver
from aqua_client.copying import Memory, UnusableSlab
from aqua_client.counters import Counters
from aqua_client.records import Grant, HostRoom, LeaseUse, RevokeNotice, SafetyClass
from aqua_client.session import Session
from aqua_client.settings import ClientSettings
from tests.contract import on_cuda
from tests.contract.tensors import every_tensor, noise, same_bits
from tests.nodes import wait_until

CANARY_BYTES = 64
CALL_SECONDS = 20.0  # a busy test machine is no fault of the node's

Said = dict[str, object]


class Holding:
    """The slabs this process has, for its session's keepalives."""

    def __init__(self) -> None:
        self.slabs: dict[int, tuple[Grant, Memory]] = {}
        self.lost: list[str] = []
        self._revision = 0

    def revoked(self, notice: RevokeNotice) -> None:
        """Nothing here is asked back: the node has room."""

    def leases_ended(self, lease_ids: Sequence[str]) -> None:
        self.lost.extend(lease_ids)

    def leases_lost(self, lease_ids: Sequence[str], reason: str) -> None:
        del reason
        self.lost.extend(lease_ids)

    def attached(self) -> None:
        """The tenant asks when it wants to know."""

    def detached(self, reason: str) -> None:
        """The tenant asks when it wants to know."""

    def lease_uses(self) -> Sequence[LeaseUse]:
        return [
            LeaseUse(lease_id=grant.lease_id, used_bytes=0, copy_bytes=0, idle_seconds=0.0)
            for grant, _ in list(self.slabs.values())
        ]

    def host_room(self) -> HostRoom:
        self._revision += 1
        return HostRoom(revision=self._revision, nbytes=0)


class Acting:
    """The verbs."""

    def __init__(self) -> None:
        self._settings = replace(
            ClientSettings.from_environment(),
            connect_seconds=CALL_SECONDS,
            call_seconds=CALL_SECONDS,
        )
        self._holding = Holding()
        self._sessions: list[Session] = []
        self._handles: list[tuple[aqua_client.OffloadedTensor, torch.Tensor]] = []
        self._wanted = threading.Event()

    def become(self, uid: int) -> Said:
        """Another user, in the group that may use the socket."""
        if _device() != "cpu":
            cuda_driver.driver()  # what it loads may lie where that user may not look
        os.setgroups([])
        os.setresuid(uid, uid, uid)
        return {}

    def borrow(self, nbytes: int) -> Said:
        """A slab, mapped; its name is the number."""
        grant = self._session().acquire(nbytes, SafetyClass.CACHE, seconds=CALL_SECONDS)
        memory = Memory.of_grant(grant, home_gpu=self._settings.home_gpu)
        number = len(self._holding.slabs) + 1
        self._holding.slabs[number] = (grant, memory)
        return {
            "number": number,
            "nbytes": grant.nbytes,
            "gpu": grant.lender_gpu,
            "keeper_pid": grant.keeper_pid,
            "canary": grant.canary.hex(),
            "start": _bytes(memory)[:CANARY_BYTES].cpu().numpy().tobytes().hex(),
            "device": str(_bytes(memory).device),
        }

    def not_zero(self, number: int) -> Said:
        """How many bytes behind the canary are not zero."""
        there = _bytes(self._memory(number))[CANARY_BYTES:]
        return {"number": int(torch.count_nonzero(there))}

    def fill(self, number: int, byte: int) -> Said:
        _bytes(self._memory(number)).fill_(byte)
        _synchronize()
        return {}

    def equal(self, number: int, byte: int) -> Said:
        """How many bytes are this one."""
        return {"number": int((_bytes(self._memory(number)) == byte).sum())}

    def give_back(self, number: int) -> Said:
        """Unmap, and say so."""
        grant, memory = self._holding.slabs[number]
        memory.close()
        del self._holding.slabs[number]
        self._release(grant)
        return {}

    def lie(self, number: int) -> Said:
        """Say that it is given back, and keep it mapped."""
        self._release(self._holding.slabs[number][0])
        return {}

    def unmap(self, number: int) -> Said:
        self._holding.slabs.pop(number)[1].close()
        return {}

    def as_if_its_keeper(self, nbytes: int) -> Said:
        """Open a slab that says to come from this very process; what was said to that."""
        grant = self._session().acquire(nbytes, SafetyClass.CACHE, seconds=CALL_SECONDS)
        try:
            Memory.of_grant(replace(grant, keeper_pid=os.getpid()))
        except UnusableSlab as error:
            is_open = grant.descriptor is not None and _is_open(grant.descriptor)
            self._release(grant)
            return {"reason": error.reason, "open": is_open}
        return {"reason": "", "open": True}

    def with_another_canary(self, nbytes: int) -> Said:
        """Open a slab that is not the one that was granted; what was said to that."""
        grant = self._session().acquire(nbytes, SafetyClass.CACHE, seconds=CALL_SECONDS)
        maps = len(_mappings())
        try:
            Memory.of_grant(
                replace(grant, canary=bytes(CANARY_BYTES)), home_gpu=self._settings.home_gpu
            )
        except UnusableSlab as error:
            self._release(grant)
            return {"reason": error.reason, "more_mappings": len(_mappings()) - maps}
        return {"reason": "", "more_mappings": 0}

    def cycles(self, count: int, nbytes: int, byte: int) -> Said:
        """Borrow, look for others' bytes, write, and give back, again and again."""
        left, figures = 0, []
        for cycle in range(count):
            borrowed = self.borrow(nbytes)
            number = borrowed["number"]
            assert isinstance(number, int)
            assert borrowed["start"] == borrowed["canary"]
            if byte:
                found = self.not_zero(number)["number"]
                assert isinstance(found, int)
                left += found
                self.fill(number, byte)
            self.give_back(number)
            if cycle in (count // 10, count - 1):
                figures.append([len(_descriptors()), len(_mappings())])
        return {"number": left, "figures": figures}

    def page_everything(self) -> Said:
        """Offload and fetch a tensor of every dtype and layout; which came back otherwise."""
        wrong, tiers = [], set()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ComplexHalf, which is experimental
            for name, tensor in every_tensor(_device()):
                handle = aqua_client.offload(tensor)
                tiers |= {handle.tier} if tensor.numel() else set()
                if not same_bits(handle.fetch(), tensor):
                    wrong.append(name)
                handle.release()
        return {"wrong": wrong, "tiers": sorted(tiers)}

    def park(self, count: int, nbytes: int) -> Said:
        """Offload noise, and keep the handles."""
        for seed in range(count):
            tensor = noise(nbytes, seed=seed, device=_device())
            self._handles.append((aqua_client.offload(tensor), tensor))
        return {"tiers": sorted({handle.tier for handle, _ in self._handles})}

    def look(self) -> Said:
        """What becomes of each tensor parked: exact, lost, or wrong."""
        return {"states": sorted({self._state(one, two) for one, two in self._handles})}

    def copy_on(self) -> Said:
        """Begin to copy in and out without end, in a thread; `copied` says how far it came."""
        self._wanted.set()
        self._copied, self._failure = 0, ""
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()
        wait_until(lambda: self._copied > 2 or self._failure, seconds=CALL_SECONDS)
        return self.copied()

    def copied(self) -> Said:
        return {"number": self._copied, "failure": self._failure}

    def stop_copying(self) -> Said:
        self._wanted.clear()
        self._thread.join(CALL_SECONDS)
        return self.copied()

    def ordering(self, rounds: int, seed: int) -> Said:
        return {"wrong": on_cuda.ordering(rounds, seed, _device())}

    def capturing(self, rounds: int) -> Said:
        return {"wrong": on_cuda.capturing(rounds, _device())}

    def _copy(self) -> None:
        seed = 0
        try:
            while self._wanted.is_set():
                seed += 1
                tensor = noise(3 * 2**20 + seed % 7, seed=seed, device=_device())
                handle = aqua_client.offload(tensor)
                state = self._state(handle, tensor)
                assert state != "wrong", f"tensor {seed} came back with other bytes"
                handle.release()
                self._copied += 1
        except Exception:  # noqa: BLE001 - told to the test
            self._failure = traceback.format_exc()

    def _state(self, handle: aqua_client.OffloadedTensor, tensor: torch.Tensor) -> str:
        try:
            return "exact" if torch.equal(handle.fetch(), tensor) else "wrong"
        except aqua_client.LeaseLost:
            return "lost"

    def _session(self) -> Session:
        if not self._sessions:
            session = Session(self._settings, self._holding, Counters())
            session.start()
            self._sessions.append(session)
            wait_until(lambda: session.attached, seconds=CALL_SECONDS, what="attached")
        return self._sessions[0]

    def _release(self, grant: Grant) -> None:
        returned = self._session().release([grant.lease_id], self._holding.host_room())
        assert returned == {grant.lease_id}

    def _memory(self, number: int) -> Memory:
        return self._holding.slabs[number][1]


def _bytes(memory: Memory) -> torch.Tensor:
    return memory.view(torch.uint8)


def _device() -> str:
    return os.environ["AQUA_TEST_DEVICE"]


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _descriptors() -> set[int]:
    return {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _mappings() -> list[str]:
    return Path("/proc/self/maps").read_text().splitlines()


def main() -> None:
    """Obey until the orders end."""
    warnings.simplefilter("ignore", aqua_client.AquaWarning)
    torch.set_num_threads(1)
    if _device() != "cpu":
        torch.cuda.set_device(_device())
        torch.zeros(1, device=_device())
    sys.stdout, out = sys.stderr, sys.stdout  # what is printed is no answer
    acting = Acting()
    out.write("{}\n")
    out.flush()
    for line in sys.stdin:
        order = json.loads(line)
        try:
            said = getattr(acting, order["verb"])(**order["arguments"])
        except Exception:  # noqa: BLE001 - told to the test
            said = {"failed": traceback.format_exc()}
        out.write(json.dumps(said) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
