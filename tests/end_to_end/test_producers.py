"""Producers on a real node: memory that is lent comes back when its owner runs out, and why not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

import aqua_client
from aqua_client.informing import LlmFigures, LlmInformer, LlmThresholds, Margins
from aqua_client.settings import ClientSettings
from tests.end_to_end.bare_client import BareClient
from tests.end_to_end.owning import Pool, PoolFull
from tests.end_to_end.test_paging import noise
from tests.nodes import MIB, REPOSITORY, Node, running_node, wait_until

GPU = "SHM-1"
CALM = LlmFigures(pending_requests=0, kv_used_bytes=8 * MIB, kv_total_bytes=64 * MIB)
BURST = LlmFigures(pending_requests=10, kv_used_bytes=8 * MIB, kv_total_bytes=64 * MIB)
MARGINS = Margins(
    retain_bytes=16 * MIB,
    least_free_bytes=24 * MIB,
    reclaim_spare_bytes=8 * MIB,
    band_bytes=4 * MIB,
    settle_seconds=0.2,
)


def settings_of(node: Node) -> ClientSettings:
    return ClientSettings(socket_path=node.socket, connect_seconds=10.0, call_seconds=10.0)


def lent_bytes(node: Node) -> float:
    samples = node.scrape()
    states = ("lent", "returning", "quarantined")
    return sum(samples[f'aqua_pool_bytes{{gpu="{GPU}",state="{state}"}}'] for state in states)


def is_owner(node: Node) -> bool:
    return node.scrape()[f'aqua_pool_bytes{{gpu="{GPU}",state="used_by_others"}}'] > 0


@contextmanager
def owned(node: Node) -> Iterator[Pool]:
    """This process uses a little of the GPU, and the daemon has heard of it."""
    with Pool(node.keeper_socket, GPU) as pool:
        pool.allocate(MIB)
        wait_until(lambda: is_owner(node), what="the daemon knows the owner")
        yield pool


def test_an_engine_out_of_memory_gets_it_back_and_runs_on() -> None:
    """The function fails once, borrowers move, it runs again; not a byte of theirs is lost."""
    with (
        running_node(gpus=2, gpu_bytes=64 * MIB) as node,
        owned(node) as pool,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as borrower,
    ):
        tensor = noise(40 * MIB)
        handle = borrower.offload(tensor)
        assert handle.tier == "peer"
        runs: list[int] = []
        guard = aqua_client.reclaim_on_oom(
            GPU, deadline=10.0, errors=(PoolFull,), settings=settings_of(node)
        )

        @guard
        def grow(nbytes: int) -> str:
            runs.append(nbytes)
            pool.allocate(nbytes)
            return "grown"

        assert grow(48 * MIB) == "grown"
        assert runs == [48 * MIB] * 2
        assert pool.nbytes == 49 * MIB
        assert (handle.tier, handle.reason) == ("host", "reclaim")
        assert torch.equal(handle.fetch(), tensor)
        guard.close()


def test_who_watches_a_reclaim_sees_it_end_and_what_it_is_called() -> None:
    """All of what was lent; then there is nothing to take back any more."""
    seen: list[aqua_client.ReclaimProgress] = []
    with (
        running_node(gpus=2, gpu_bytes=64 * MIB) as node,
        owned(node),
        aqua_client.producer(GPU, settings=settings_of(node)) as mine,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as borrower,
    ):
        handle = borrower.offload(noise(20 * MIB))
        assert handle.tier == "peer"
        result = mine.reclaim(64 * MIB, deadline=10.0, on_progress=seen.append)
        assert (result.outcome, result.freed_bytes) == ("complete", result.revoked_bytes)
        assert seen[-1].freed_bytes == result.freed_bytes >= 20 * MIB
        assert lent_bytes(node) == 0
        assert mine.reclaim(MIB, deadline=1.0).outcome == "nothing_lent"


def test_a_borrower_that_hangs_makes_a_reclaim_partial() -> None:
    """In time, with the bytes that stay named, and progress meanwhile."""
    seen: list[aqua_client.ReclaimProgress] = []
    with (
        running_node(gpus=2, gpu_bytes=64 * MIB) as node,
        owned(node),
        aqua_client.producer(GPU, settings=settings_of(node)) as mine,
        BareClient(node.socket) as hanging,
    ):
        while lent_bytes(node) == 0:  # it borrows of any GPU
            hanging.acquire()
        result = mine.reclaim(MIB, deadline=0.2, on_progress=seen.append)
        assert result.outcome == "partial"
        assert not result.complete
        assert result.quarantined_bytes == result.revoked_bytes > 0
        assert seen[-1].quarantined_bytes == result.quarantined_bytes
        assert [one.freed_bytes for one in seen] == [0] * len(seen)


def test_who_is_in_need_hastens_what_it_took_back_at_leisure() -> None:
    """The borrower is told again with less time, is late by that, and both hear of what came."""
    with (
        running_node(gpus=2, gpu_bytes=64 * MIB) as node,
        owned(node),
        aqua_client.producer(GPU, settings=settings_of(node)) as mine,
        BareClient(node.socket) as borrower,
        ThreadPoolExecutor(2) as threads,
    ):
        while lent_bytes(node) == 0:  # it borrows of any GPU
            borrower.acquire()
        at_leisure = threads.submit(mine.reclaim, MIB, deadline=30.0)
        first = borrower.revoke()
        in_need = threads.submit(mine.reclaim, MIB, deadline=0.2)
        again = borrower.revoke()
        assert again.lease_ids == first.lease_ids
        assert 20 < first.deadline_seconds <= 30
        assert again.deadline_seconds <= 0.2
        quarantined = f'aqua_pool_bytes{{gpu="{GPU}",state="quarantined"}}'
        wait_until(lambda: node.scrape()[quarantined] > 0, what="it is late")
        borrower.give_back("Acknowledge", *again.lease_ids)
        for result in (at_leisure.result(), in_need.result()):
            assert result.outcome == "complete"
            assert result.freed_bytes == first.nbytes


def test_an_informer_lends_when_it_is_calm_and_takes_back_in_a_burst() -> None:
    """With the policy `offered` nothing is lent before it says so, and nothing after."""
    informer = LlmInformer(LlmThresholds(margins=MARGINS))
    with (
        running_node(gpus=2, gpu_bytes=64 * MIB, lending="offered") as node,
        owned(node),
        aqua_client.producer(GPU, informer=informer, settings=settings_of(node)) as mine,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0", fallback="error") as borrower,
    ):
        lendable = f'aqua_lendable_bytes{{gpu="{GPU}"}}'
        assert node.scrape()[lendable] == 0

        def lends() -> bool:
            mine.report(CALM)
            return node.scrape()[lendable] > 0

        wait_until(lends, what="a calm engine lends")
        tensor = noise(12 * MIB)
        handle = borrower.offload(tensor)
        assert handle.tier == "peer"
        mine.report(BURST)
        wait_until(lambda: lent_bytes(node) == 0, what="it is all back")
        wait_until(lambda: mine.stats()["offered_bytes"] == 0, what="nothing is offered")
        assert node.scrape()[lendable] == 0
        assert torch.equal(handle.fetch(), tensor)
        assert mine.stats()["report_failures"] == {}


def test_the_readmes_examples_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they stand there, in a process that uses the GPU."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    mine = [block for block in blocks if "producer(" in block or "reclaim_on_oom" in block]
    with running_node(gpus=2, gpu_bytes=64 * MIB) as node, owned(node):
        monkeypatch.setenv("AQUA_SOCKET", node.socket)
        monkeypatch.setenv("AQUA_CONNECT_SECONDS", "10")
        for block in mine:
            exec(compile(block, "README.md", "exec"), {"__name__": "readme"})  # noqa: S102 - ours
    told = capsys.readouterr().out
    assert told.splitlines() == [
        "nothing_lent 0 0",
        "Nothing(reason='not_calm')",
        "[2, 4, 6]",
        "[8]",
    ]
