"""How long a lease takes to come: to one client, to eight at once, and beside many that live.

The time is from the call to a grant with its descriptor in hand, so it has the keeper's allocation
in it. The rival is what any broker over gRPC pays first: one unary call on the same socket.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import grpc
from aqua_protos import health_pb2, health_pb2_grpc

from tests.benchmarks.crowd import Crowd, crowd
from tests.benchmarks.figure import Figure, percentile
from tests.nodes import Node

SUBJECT = "grants"
CLIENTS = 8
SECONDS = 4.0
GRANTS_A_SECOND = 1000.0
P50_MS = 1.0
FEW, MANY = 10, 1000  # leases that live
HOLDERS = 45  # who hold them
SLOWER = 1.5
HEALTH_ROUNDS = 300
CLOCK = time.perf_counter


def measure(node: Node) -> Iterator[Figure]:
    """Measure against a running node of 8 GPUs of 1 GiB."""
    with crowd(node, sessions=1, processes=1) as one:
        alone = _grants(one)
        call_ms = _call_ms(node)
        yield Figure(
            subject=SUBJECT,
            name="one client, p50",
            value=statistics.median(alone) * 1e3,
            unit="ms",
            rival=f"one unary call {call_ms:.2f} ms; p99 of a grant "
            f"{percentile(alone, 99) * 1e3:.2f} ms",
            at_most=P50_MS,
        )
        yield _beside_many(node, one)
    with crowd(node, sessions=CLIENTS, processes=CLIENTS) as clients:
        answers = clients.ask(f"grants {SECONDS}")
    # The first to begin to the last to end: what is done alone counts too little, not too much.
    span = max(one["span"][1] for one in answers) - min(one["span"][0] for one in answers)
    taken = [seconds for one in answers for seconds in one["seconds"]]
    yield Figure(
        subject=SUBJECT,
        name=f"{CLIENTS} client processes at once",
        value=len(taken) / span,
        unit="a second",
        rival=f"p50 {statistics.median(taken) * 1e3:.2f} ms, p99 "
        f"{percentile(taken, 99) * 1e3:.2f} ms",
        at_least=GRANTS_A_SECOND,
    )


def _beside_many(node: Node, one: Crowd) -> Figure:
    """A grant while many leases live, and while few do, before and after that."""
    one.ask(f"borrow {FEW}")
    few = _grants(one)
    with crowd(node, sessions=HOLDERS, processes=2) as holders:
        holders.ask(f"borrow {(MANY - FEW) // HOLDERS}")
        many_ms = statistics.median(_grants(one)) * 1e3
    few_ms = statistics.median(few + _grants(one)) * 1e3
    return Figure(
        subject=SUBJECT,
        name=f"a grant beside {MANY:,} live leases",
        value=many_ms / few_ms,
        unit=f"times one beside {FEW}",
        rival=f"{many_ms:.2f} ms and {few_ms:.2f} ms",
        at_most=SLOWER,
    )


def _grants(one: Crowd) -> list[float]:
    (answer,) = one.ask(f"grants {SECONDS}")
    return list(answer["seconds"])


def _call_ms(node: Node) -> float:
    taken: list[float] = []
    with grpc.insecure_channel(f"unix:{node.socket}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for _ in range(HEALTH_ROUNDS):
            start = CLOCK()
            health.Check(health_pb2.HealthCheckRequest(), timeout=5)
            taken.append(CLOCK() - start)
    return statistics.median(taken) * 1e3
