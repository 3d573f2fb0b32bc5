"""How long a lease takes to come, and how soon a dead client's memory is free again.

Acquire: one client asks for the smallest slab and gives it back, over and over; the time is from
the call to a grant with its descriptor in hand, so it has the keeper's allocation in it. The rival
is what any broker over gRPC pays first: one unary call (health) on the same socket.

Kill to returned: a client that holds leases is killed with SIGKILL; the clock stops when a keeper
has freed all of its slabs, as the daemon's metrics say. Looking costs a scrape, which is printed:
the figure is that much too high at most.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import grpc
from aqua_protos import health_pb2, health_pb2_grpc

from aqua_client.counters import Counters
from aqua_client.session import Session
from aqua_client.settings import ClientSettings
from aqua_client.wire import HostRoom, LeaseUse, RevokeNotice, SafetyClass
from tests.nodes import Node, environment, read_line, wait_until

ROUNDS = 300
WARM_ROUNDS = 10
KILLS = 10
HELD_TENSORS = 8
CLOCK = time.perf_counter

HOLDER = f"""
import signal, torch, aqua_client
held = [aqua_client.offload(torch.ones(2**22, dtype=torch.uint8)) for _ in range({HELD_TENSORS})]
assert all(handle.tier == "peer" for handle in held), [handle.reason for handle in held]
print("holding", flush=True)
signal.pause()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseFigures:
    """Milliseconds."""

    rounds: int
    health_p50_ms: float
    health_p99_ms: float
    acquire_p50_ms: float
    acquire_p99_ms: float
    kills: int
    killed_bytes: int
    kill_to_returned_p50_ms: float
    kill_to_returned_max_ms: float
    scrape_ms: float


class _Nobody:
    """A listener without slabs: these sessions hold a lease for an instant."""

    def revoked(self, notice: RevokeNotice) -> None:
        pass

    def leases_ended(self, lease_ids: Sequence[str]) -> None:
        pass

    def leases_lost(self, lease_ids: Sequence[str], reason: str) -> None:
        pass

    def attached(self) -> None:
        pass

    def detached(self, reason: str) -> None:
        pass

    def lease_uses(self) -> Sequence[LeaseUse]:
        return ()

    def host_room(self) -> HostRoom:
        return HostRoom(revision=0, nbytes=0)


def measure(node: Node) -> LeaseFigures:
    """Measure against a running node."""
    healths, acquires = _grants(node)
    kills = [_kill(node) for _ in range(KILLS)]
    start = CLOCK()
    node.scrape()
    scrape_ms = (CLOCK() - start) * 1e3
    return LeaseFigures(
        rounds=len(acquires),
        health_p50_ms=statistics.median(healths) * 1e3,
        health_p99_ms=_p99(healths) * 1e3,
        acquire_p50_ms=statistics.median(acquires) * 1e3,
        acquire_p99_ms=_p99(acquires) * 1e3,
        kills=len(kills),
        killed_bytes=HELD_TENSORS * 2**22,
        kill_to_returned_p50_ms=statistics.median(kills) * 1e3,
        kill_to_returned_max_ms=max(kills) * 1e3,
        scrape_ms=scrape_ms,
    )


def document(figures: LeaseFigures) -> dict[str, object]:
    """For the result file."""
    return asdict(figures)


def table(figures: LeaseFigures) -> Iterator[str]:
    """For people."""
    yield "leases (ms)"
    yield (
        f"  acquire the smallest slab   p50 {figures.acquire_p50_ms:.2f}"
        f"   p99 {figures.acquire_p99_ms:.2f}   ({figures.rounds} rounds)"
    )
    yield (
        f"  one unary call (health)     p50 {figures.health_p50_ms:.2f}"
        f"   p99 {figures.health_p99_ms:.2f}"
    )
    yield (
        f"  SIGKILL to all bytes freed  p50 {figures.kill_to_returned_p50_ms:.1f}"
        f"   max {figures.kill_to_returned_max_ms:.1f}   ({figures.kills} kills of a client with "
        f"{figures.killed_bytes // 2**20} MiB; looking costs {figures.scrape_ms:.1f})"
    )


def _grants(node: Node) -> tuple[list[float], list[float]]:
    """Seconds of health calls and of acquires, taken in turn."""
    settings = ClientSettings(socket_path=node.socket, home_gpu="SHM-0")
    session = Session(settings, _Nobody(), Counters())
    session.start()
    healths: list[float] = []
    acquires: list[float] = []
    empty = HostRoom(revision=0, nbytes=0)
    with grpc.insecure_channel(f"unix:{node.socket}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        try:
            for _ in range(WARM_ROUNDS + ROUNDS):
                start = CLOCK()
                health.Check(health_pb2.HealthCheckRequest(), timeout=5)
                asked = CLOCK()
                grant = session.acquire(session.smallest_slab_bytes, SafetyClass.CACHE, seconds=5.0)
                granted = CLOCK()
                assert grant.descriptor is not None
                os.close(grant.descriptor)
                session.release([grant.lease_id], empty)
                healths.append(asked - start)
                acquires.append(granted - asked)
        finally:
            session.close()
    return healths[WARM_ROUNDS:], acquires[WARM_ROUNDS:]


def _kill(node: Node) -> float:
    """Seconds from SIGKILL of a holder to the last of its bytes freed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        env=environment(AQUA_SOCKET=node.socket, AQUA_HOME_GPU="SHM-0"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    try:
        assert read_line(holder.stdout, seconds=60) == "holding\n"
        assert _held_bytes(node), "the holder holds something"
        start = CLOCK()
        holder.send_signal(signal.SIGKILL)
        wait_until(lambda: _held_bytes(node) == 0, what="a killed client's bytes are free")
        return CLOCK() - start
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def _held_bytes(node: Node) -> float:
    pools = ("lent", "quarantined", "returning")
    return sum(
        value
        for name, value in node.scrape().items()
        if name.startswith("aqua_pool_bytes") and any(f'state="{pool}"' in name for pool in pools)
    )


def _p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]
