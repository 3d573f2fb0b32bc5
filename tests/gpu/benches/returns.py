"""How soon lent memory is back, by the driver's own figure, and how soon any is lent again.

At its owner's wish, by size and class, beside a plain copy of as much to the host; after a tenant is
killed; what a lease costs by its slab's size; and from a daemon's start to its first grant.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch

import aqua_client
from aqua_client.producing import Producer, producer
from aqua_client.settings import ClientSettings
from tests.benchmarks.owners import running_owner
from tests.contract.places import Place, Tenant, TenantFailed
from tests.gpu.benches.timing import Seconds, median_of, size
from tests.gpu.probe.findings import Findings, milliseconds
from tests.gpu.probe.plan import MIB, Plan
from tests.nodes import wait_until

PIECE_BYTES = 256 * MIB  # of what is parked
LENT_BYTES = 2**48  # more than any GPU has: what a reclaim has barred may be lent again
LEAST_SECONDS, SECONDS_A_GIB = 30.0, 2.0
Reclaim = Callable[[int, float], object]


def measure(place: Place, plan: Plan, findings: Findings) -> None:
    """Each in its row as soon as it is known; what does not fit is said in its place."""

    def tell(question: str, work: Callable[[], Seconds]) -> None:
        if findings.knows(question):
            return
        with findings.attempt(question):
            found = work()
            words = [f"{name} {milliseconds(one)}" for name, one in found.items()]
            findings.figures(f"{question}, seconds", found)
            findings.row(question, ", ".join(words))

    with findings.attempt("an owner that takes back"), _owner(place) as reclaim:
        for nbytes, keep in itertools.product(plan.return_sizes, ("store", "cache")):
            returned = partial(_returned_beside_a_copy, place, reclaim, nbytes, keep, plan)
            tell(f"{size(nbytes)} of `{keep}` to its owner", returned)
    tell("a tenant is killed", lambda: _killed(place, plan))
    with place.tenant() as tenant:
        for nbytes in (place.slab_bytes * step for step in (1, 2, 4, 8)):
            tell(f"a lease of {size(nbytes)}", partial(_lease, tenant, nbytes, plan))
        tell("a daemon is killed", lambda: _first_grant(place, tenant))


@contextmanager
def _owner(place: Place) -> Iterator[Reclaim]:
    """On CUDA this process, which has a context there; on stand-ins one that says that it has."""
    if not place.torch_device.startswith("cuda"):
        with running_owner(place.node, place.lender_gpu) as owner:

            def ask(nbytes: int, seconds: float) -> object:
                return owner.ask(f"reclaim {nbytes} {seconds}" if nbytes else f"lend {LENT_BYTES}")

            yield ask
        return
    settings = ClientSettings(socket_path=place.node.socket, connect_seconds=20.0)
    with producer(place.lender_gpu, settings=settings) as mine:
        torch.zeros(1, device=place.torch_device)  # torch makes its context no sooner
        wait_until(lambda: _is_owner(mine), seconds=20, what="the daemon sees this process there")
        yield (
            lambda nbytes, seconds: (
                mine.reclaim(nbytes, deadline=seconds) if nbytes else mine.lend(LENT_BYTES)
            )
        )


def _is_owner(mine: Producer) -> bool:
    """By NVML, which the keeper reads now and then."""
    try:
        mine.lend(LENT_BYTES)
    except aqua_client.NotAnOwner:
        return False
    return True


def _free_bytes(place: Place) -> int:
    """The driver's word; of stand-ins the daemon's."""
    if place.torch_device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(place.torch_device)[0])
    return place.pool_bytes("free")


def _returned_beside_a_copy(
    place: Place, reclaim: Reclaim, nbytes: int, keep: str, plan: Plan
) -> Seconds:
    return {
        **_returned(place, reclaim, nbytes, keep),
        "a plain copy to the host": _plain_copy(place, nbytes, plan),
    }


def _returned(place: Place, reclaim: Reclaim, nbytes: int, keep: str) -> Seconds:
    """Empty: not all of it could be parked."""
    reclaim(0, 0.0)
    piece = torch.ones(min(nbytes, PIECE_BYTES), dtype=torch.uint8, device=place.torch_device)
    handles = [aqua_client.offload(piece, keep=keep) for _ in range(nbytes // piece.numel())]
    try:
        if any(one.tier != "peer" for one in handles):
            return {}
        handles[-1].fetch()
        place.settled_free_bytes()
        # Meanwhile the driver may take some of it for what it pins of the host.
        wanted = _free_bytes(place) + nbytes - place.slack_bytes
        most_seconds = LEAST_SECONDS + SECONDS_A_GIB * nbytes / 2**30
        begun = time.perf_counter()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(lambda: (reclaim(nbytes, most_seconds), time.perf_counter())[1])
            wait_until(lambda: _free_bytes(place) >= wanted, seconds=most_seconds, what="all of it")
            back_seconds = time.perf_counter() - begun
            return {"free after": back_seconds, "said after": asked.result() - begun}
    finally:
        for one in handles:
            one.release()
        wait_until(lambda: not aqua_client.stats()["peer_bytes"], seconds=60, what="released")
        place.await_none_lent()


def _plain_copy(place: Place, nbytes: int, plan: Plan) -> float:
    """What the way to the host alone takes, from one piece, again and again."""
    piece = torch.ones(min(nbytes, PIECE_BYTES), dtype=torch.uint8, device=place.torch_device)
    there = torch.ones(piece.numel(), dtype=torch.uint8, pin_memory=piece.is_cuda)
    return median_of(plan.repeats, lambda: there.copy_(piece)) * nbytes / piece.numel()


def _killed(place: Place, plan: Plan) -> Seconds:
    place.settled_free_bytes()
    wanted = _free_bytes(place) - place.slack_bytes
    with place.tenant() as tenant:
        tenant.ask("park", count=4, nbytes=plan.slab_bytes)
        begun = time.perf_counter()
        tenant.kill()
        place.await_none_lent()
        lent_seconds = time.perf_counter() - begun
        wait_until(lambda: _free_bytes(place) >= wanted, seconds=60, what="all is free")
        return {"no slab is lent after": lent_seconds, "free after": time.perf_counter() - begun}


def _lease(tenant: Tenant, nbytes: int, plan: Plan) -> Seconds:
    """Asked for, scrubbed, mapped and given back, by a process that is told by a pipe."""

    def cycle() -> None:
        tenant.ask("cycles", count=1, nbytes=nbytes, byte=0)

    return {"from the question to its return, and a pipe's time": median_of(plan.repeats, cycle)}


def _first_grant(place: Place, tenant: Tenant) -> Seconds:
    tenant.ask("borrow", nbytes=place.slab_bytes)
    begun = time.perf_counter()
    place.node.restart_daemon(graceful=False)
    ready_seconds = time.perf_counter() - begun

    def is_granted() -> bool:
        try:
            tenant.ask("borrow", nbytes=place.slab_bytes)
        except TenantFailed:
            return False
        return True

    wait_until(is_granted, seconds=60, what="a grant of the new daemon")
    return {"the next is ready after": ready_seconds, "and grants": time.perf_counter() - begun}
