"""An idle engine lends its KV cache's memory; a busy one takes it back, and says what it should."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import pytest
import torch

import aqua_client
from aqua_client.errors import BrokerUnreachable
from aqua_client.informing import Decision, Figures, LlmFigures, LlmThresholds, Margins, Nothing
from aqua_client.integrations.transformers import Lending, attach
from aqua_client.integrations.transformers.engine import kv_groups
from aqua_client.records import ReclaimResult
from aqua_client.settings import ClientSettings
from tests.end_to_end.owning import Pool
from tests.integrations.transformers.engines import (
    answers,
    batching,
    expected,
    manager_of,
    prompts,
    started,
)
from tests.nodes import MIB, running_node, wait_until

GPU = "SHM-1"
KV_BLOCKS = 16
ASKED = prompts(6)
RIGHT = [expected(one) for one in ASKED]


class Deciding:
    """A lender whose decisions the test makes."""

    def __init__(self, wanted_bytes: int = 0, *, is_stubborn: bool = False) -> None:
        self.wanted_bytes = wanted_bytes
        self._is_stubborn = is_stubborn
        self.told: list[LlmFigures] = []
        self.reclaimed: list[int] = []

    def report(self, figures: Figures, /) -> Decision:
        assert isinstance(figures, LlmFigures)
        self.told.append(figures)
        return Nothing(reason="a test decides")

    def reclaim(self, nbytes: int, /) -> ReclaimResult:
        self.reclaimed.append(nbytes)
        if not self._is_stubborn:
            self.wanted_bytes = 0
        raise BrokerUnreachable("nobody is there", reason="no_daemon")

    def stats(self) -> dict[str, object]:
        return {"wanted_bytes": self.wanted_bytes}


def test_an_idle_engine_lets_its_cache_go_and_has_it_again(client: aqua_client.Client) -> None:
    """Asked again it takes back all of it, without a daemon too, and says what it should."""
    manager, lender = manager_of(batching(blocks=KV_BLOCKS)), Deciding()
    with (
        closing(attach(manager, client=client)) as paging,
        closing(Lending(manager, paging, lender, report_seconds=0.005)) as lending,
        started(manager),
    ):
        assert answers(manager, ASKED) == RIGHT
        assert lender.reclaimed == []
        for _ in range(2):
            lender.wanted_bytes = 1
            wait_until(lambda: lending.is_asleep, what="the cache is let go of")
            assert answers(manager, ASKED) == RIGHT
            assert not lending.is_asleep
        assert lender.reclaimed == [sum(lending._sizes)] * 2
    used = [one.kv_used_bytes for one in lender.told]
    assert max(used) > 0 == used[-1]
    assert max(one.requests_per_second for one in lender.told) >= 0.6


def test_who_waits_is_reported(client: aqua_client.Client) -> None:
    """The queue is what a busy engine is known by: all before it starts, nobody at the end."""
    manager, lender = manager_of(batching(blocks=KV_BLOCKS)), Deciding()
    with (
        closing(attach(manager, client=client)) as paging,
        closing(Lending(manager, paging, lender, report_seconds=0.005)),
    ):
        for prompt in ASKED:
            manager.add_request(prompt, max_new_tokens=4)

        def reported() -> int | None:
            return lender.told[-1].pending_requests if lender.told else None

        wait_until(lambda: reported() == len(ASKED), what="all that wait are reported")
        with started(manager):
            wait_until(lambda: reported() == 0, what="nobody waits")


def test_a_busy_engine_keeps_its_cache(client: aqua_client.Client) -> None:
    """Whatever is wanted all the time, it is not let go of before the last request has ended."""
    manager, lender = manager_of(batching(blocks=KV_BLOCKS)), Deciding(1, is_stubborn=True)
    with (
        closing(attach(manager, client=client)) as paging,
        closing(Lending(manager, paging, lender, report_seconds=0.001)) as lending,
        started(manager),
    ):
        assert answers(manager, ASKED) == RIGHT
        wait_until(lambda: lending.is_asleep, what="it is let go of in the end")
    assert any(one.kv_used_bytes for one in lender.told)


class Owning:
    """A real producer; what it takes back its process has on the stand-in GPU again."""

    def __init__(self, producer: aqua_client.Producer, pool: Pool) -> None:
        self.report, self.stats = producer.report, producer.stats
        self._producer, self._pool = producer, pool

    def reclaim(self, nbytes: int, /) -> ReclaimResult:
        result = self._producer.reclaim(nbytes, 10.0)
        self._pool.allocate(nbytes)  # raises where a borrower still has it
        return result


@pytest.mark.filterwarnings("ignore::aqua_client.AquaWarning")
def test_an_idle_engine_lends_and_a_busy_one_takes_back() -> None:
    """On a real node: a borrower has the idle cache's memory until a request comes; no byte is lost."""
    calm = Margins(
        retain_bytes=0,
        least_free_bytes=0,
        reclaim_spare_bytes=0,
        band_bytes=0,
        settle_seconds=0.2,
    )
    informer = aqua_client.LlmInformer(LlmThresholds(margins=calm))
    manager = manager_of(batching(blocks=2048))
    with (
        running_node(gpus=2, gpu_bytes=64 * MIB, lending="offered") as node,
        Pool(node.keeper_socket, GPU) as pool,
        aqua_client.connect(socket=node.socket, home_gpu="SHM-0") as borrower,
        closing(attach(manager, client=borrower, write_through=False)) as paging,
    ):
        kv_bytes = sum(one.nbytes for one in kv_groups(paging.cache)[0].caches) // MIB * MIB
        pool.allocate(44 * MIB)
        pool.allocate(kv_bytes)
        used = f'aqua_pool_bytes{{gpu="{GPU}",state="used_by_others"}}'
        wait_until(lambda: node.scrape()[used] >= 44 * MIB, what="the daemon knows the owner")
        settings = ClientSettings(socket_path=node.socket, connect_seconds=10, call_seconds=10)
        with (
            aqua_client.producer(GPU, informer=informer, settings=settings) as producer,
            closing(
                Lending(manager, paging, Owning(producer, pool), report_seconds=0.02)
            ) as lending,
        ):
            wait_until(lambda: lending.is_asleep, what="the idle cache is let go of")
            assert [one.nbytes() for one in lending._storages] == [0] * len(lending._sizes)
            pool.free()
            pool.allocate(44 * MIB)
            tensor = torch.randn(1024, 1024)
            wait_until(partial(is_on_a_peer, borrower, tensor), what="it is lent")
            parked = borrower.offload(tensor)
            assert parked.tier == "peer"
            with started(manager):
                assert answers(manager, ASKED) == RIGHT
            assert [one.nbytes() for one in lending._storages] == lending._sizes
            assert torch.equal(parked.fetch(), tensor)
            assert (parked.tier, pool.nbytes) == ("host", 44 * MIB + sum(lending._sizes))


def is_on_a_peer(borrower: aqua_client.Client, tensor: torch.Tensor) -> bool:
    handle = borrower.offload(tensor)
    handle.release()
    return bool(borrower.stats()["peer_out_bytes"])
