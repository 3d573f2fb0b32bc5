"""A server is never hurt: whatever happens to the node, each call ends in time, as the README says.

Every row of the README's table is a case here, with real processes, and times at ten times what is
promised. More of the same elsewhere: clients that work all the time while the daemon dies
(test_paging), faults by chance (test_chaos), clients that die (test_client_deaths), owners that
grow (test_revokes).
"""

from __future__ import annotations

import re
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import torch

import aqua_client
from tests.end_to_end.never_hurt import AT_ONCE_SECONDS, ROWS, Row
from tests.end_to_end.test_paging import noise
from tests.nodes import MIB, REPOSITORY, Node, running_node, short_directory, wait_until

TEN_TIMES = 10
HEAL_SECONDS = 30.0
OFFLOADS = 4
TABLE = "## When something is wrong"

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Offloaded:
    """What came of one offload."""

    seconds: float
    handle: aqua_client.OffloadedTensor | None
    tier: str  # empty: it raised
    reason: str


def timed(call: Callable[[], ResultT], *, seconds: float = AT_ONCE_SECONDS) -> ResultT:
    """What a call returns, which must be there in ten times *seconds*."""
    started = time.monotonic()
    try:
        return call()
    finally:
        assert time.monotonic() - started < TEN_TIMES * seconds


@contextmanager
def node_of(row: Row) -> Iterator[tuple[str, Node | None]]:
    """The socket, and the node if there is one."""
    if not row.has_daemon:
        with short_directory() as directory:
            yield str(directory / "aqua.sock"), None
    else:
        with running_node(
            gpus=3,
            gpu_bytes=64 * MIB,
            tenant_quota_bytes=row.quota_bytes,
            host_pool_bytes=row.host_pool_bytes,
        ) as node:
            yield node.socket, node


@pytest.mark.limit(120)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what.replace(" ", "-"))
def test_whatever_goes_wrong_calls_end_in_time_and_bytes_are_exact(row: Row) -> None:
    """Outcome, reason, counter, error, bytes and time of each call; then everything is as before."""
    kept, beyond = noise(3 * MIB), noise(2 * MIB, seed=1)
    with (
        warnings.catch_warnings(),
        node_of(row) as (socket, node),
        aqua_client.connect(socket=socket, home_gpu="SHM-0") as client,
        aqua_client.connect(socket=socket, home_gpu="SHM-0", fallback="error") as strict,
    ):
        warnings.simplefilter("ignore", aqua_client.AquaWarning)
        held, spare = client.offload(kept), client.offload(kept[:MIB])
        held_strictly = None
        with suppress(aqua_client.AquaError):  # as `held`, if there is room for two of them
            held_strictly = strict.offload(kept)
        assert held.tier == spare.tier == ("peer" if node else "host")
        already = Counter(fallbacks(client))
        with no_fault() if node is None else row.fault(node):
            found = [offload(client, beyond) for _ in range(OFFLOADS)]
            check_offloads(row, found)
            check_fetch(row, held, kept)
            check_handles(found, beyond)
            check_release(client, spare)
            check_strict(row, strict, beyond)
            counted = Counter(fallbacks(client)) - already
            told = Counter(one.reason for one in found if one.reason)
            assert counted == (told if row.tiers else Counter())
            assert row.tiers or calls_failed(client)[row.reasons[0]] >= OFFLOADS
        if row.heals:
            check_healed(row, client, beyond)
        check_fetch(row, held, kept)
        if held_strictly is not None:
            check_fetch(row, held_strictly, kept)


@contextmanager
def no_fault() -> Iterator[None]:
    yield


def offload(client: aqua_client.Client, tensor: torch.Tensor) -> Offloaded:
    started = time.monotonic()
    try:
        handle = client.offload(tensor)
    except aqua_client.InsufficientMemory as error:
        return Offloaded(time.monotonic() - started, None, "", error.reason)
    return Offloaded(time.monotonic() - started, handle, handle.tier, handle.reason)


def check_offloads(row: Row, found: list[Offloaded]) -> None:
    print([(round(one.seconds, 4), one.tier, one.reason) for one in found])
    assert found[0].seconds < TEN_TIMES * row.first_seconds
    # Where it once took a deadline, one of ten times at once is already shorter than another one.
    assert all(one.seconds < TEN_TIMES * AT_ONCE_SECONDS for one in found[1:])
    for one in found:
        assert one.tier in (row.tiers or ("",))
        assert one.reason in (("",) if one.tier == "peer" else row.reasons)


def check_fetch(row: Row, held: aqua_client.OffloadedTensor, kept: torch.Tensor) -> None:
    if row.loses:
        wait_until(lambda: held.tier == "lost", what="the loss is known")
        with pytest.raises(aqua_client.LeaseLost):
            timed(held.fetch)
    else:
        assert torch.equal(timed(held.fetch), kept)


def check_handles(found: list[Offloaded], beyond: torch.Tensor) -> None:
    for one in found:
        if one.handle is not None:
            assert torch.equal(timed(one.handle.fetch), beyond)
            timed(one.handle.release)


def check_release(client: aqua_client.Client, spare: aqua_client.OffloadedTensor) -> None:
    """Of what lies on a peer, or is lost: at once, and its room is free again."""
    tier, before = spare.tier, client.stats()
    timed(spare.release)
    with pytest.raises(aqua_client.HandleReleased):
        timed(spare.fetch)
    after = client.stats()
    assert after["releases"] == number(before, "releases") + 1
    if tier != "lost":
        assert after[f"{tier}_bytes"] == number(before, f"{tier}_bytes") - MIB


def check_strict(row: Row, strict: aqua_client.Client, beyond: torch.Tensor) -> None:
    """Who wants no host memory gets the error that the README names, as soon, or a peer's."""
    allowed = {(row.error, reason) for reason in row.reasons}
    if "peer" in row.tiers:
        allowed.add(("", ""))
    assert timed(lambda: refusal(strict, beyond), seconds=row.first_seconds) in allowed
    assert fallbacks(strict) == {}


def refusal(strict: aqua_client.Client, tensor: torch.Tensor) -> tuple[str, str]:
    """What an offload raised, and its reason; empty when the bytes went to a peer and came back."""
    try:
        handle = strict.offload(tensor)
    except (aqua_client.BrokerUnreachable, aqua_client.InsufficientMemory) as error:
        return type(error).__name__, error.reason
    assert handle.tier == "peer"
    assert torch.equal(handle.fetch(), tensor)
    handle.release()
    return "", ""


def check_healed(row: Row, client: aqua_client.Client, beyond: torch.Tensor) -> None:
    def is_well() -> bool:
        handle = client.offload(beyond)
        where = handle.tier, handle.reason
        assert torch.equal(handle.fetch(), beyond)
        handle.release()  # one is tried after the other, until all host room would be used up
        return where == ("peer", "")

    wait_until(is_well, seconds=HEAL_SECONDS, what=f"peers again after: {row.what}")


def fallbacks(client: aqua_client.Client) -> dict[str, int]:
    return by_reason(client, "fallbacks")


def calls_failed(client: aqua_client.Client) -> dict[str, int]:
    return by_reason(client, "call_failures")


def number(stats: dict[str, object], name: str) -> int:
    found = stats[name]
    assert isinstance(found, int)
    return found


def by_reason(client: aqua_client.Client, name: str) -> dict[str, int]:
    found = client.stats()[name]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("term_seconds", "seconds"),
    [(1.0, 3.2), pytest.param(10.0, 60.0, marks=[pytest.mark.long, pytest.mark.limit(180)])],
    ids=["three-terms", "a-minute"],
)
def test_without_a_daemon_what_is_on_peers_stays(term_seconds: float, seconds: float) -> None:
    """Terms lapse, fetches go on; nothing new is written there; the next daemon knows it all."""
    kept = [noise(MIB, seed=seed) for seed in range(6)]
    with (
        warnings.catch_warnings(),
        running_node(gpus=3, gpu_bytes=64 * MIB, term_seconds=term_seconds) as node,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as client,
    ):
        warnings.simplefilter("ignore", aqua_client.AquaWarning)
        held = [client.offload(tensor) for tensor in kept]
        node.kill_daemon()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for handle, tensor in zip(held, kept, strict=True):
                assert torch.equal(timed(handle.fetch), tensor)
            threading.Event().wait(0.1)
        assert {handle.tier for handle in held} == {"peer"}
        late = timed(lambda: client.offload(noise(100)))
        assert (late.tier, late.reason) == ("host", "no_daemon")
        node.start_daemon()
        wait_until(lambda: client.stats()["attached"], seconds=HEAL_SECONDS, what="attached")
        wait_until(
            lambda: client.offload(noise(100)).tier == "peer", seconds=HEAL_SECONDS, what="peers"
        )
        assert {handle.tier for handle in held} == {"peer"}
        assert all(torch.equal(h.fetch(), tensor) for h, tensor in zip(held, kept, strict=True))


def test_the_readmes_table_is_what_is_tested() -> None:
    """Row by row, cell by cell."""
    assert table_in(REPOSITORY / "README.md") == [row.cells() for row in ROWS]


def table_in(path: Path) -> list[list[str]]:
    section = path.read_text().split(TABLE, 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| (.*) \|$", section, re.MULTILINE)
    return [row.split(" | ") for row in rows[1:] if not row.startswith("---")]
