"""One line that gives an engine its paging.

Covers what is refused, and where the engine is told. What is done then is `paging`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import aqua_client
from aqua_client.errors import InvalidRequest
from aqua_client.integrations.transformers import engine
from aqua_client.integrations.transformers.copies import Pools
from aqua_client.integrations.transformers.fair import FairBatches
from aqua_client.integrations.transformers.paging import Paging
from aqua_client.scheduling import FairSettings

if TYPE_CHECKING:
    from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager

AHEAD_BYTES = 256 * 2**20  # 2,000 tokens of an 8B model: one that waits, and seldom two


def attach(
    manager: ContinuousBatchingManager,
    *,
    client: Pools | None = None,
    write_through: bool = True,
    ahead_bytes: int = AHEAD_BYTES,
    fair: FairSettings | None = None,
    parks: bool = True,
) -> Paging:
    """Have *manager* page its requests' KV caches to leases; before it is started.

        manager = model.init_continuous_batching(continuous_batching_config=config)
        paging = attach(manager)
        manager.start()
        ...
        manager.stop()
        paging.close()

    *client*: whose leases; the process's own if None. *write_through*: copy full blocks while the
    model computes, so that giving way costs less and memory more. *ahead_bytes*: how much of those
    whose turn comes next is brought to the device before there is room for it in the cache, beside
    which it is meanwhile; 0 brings nothing, as the engine's own schedulers do, which do not say who
    is next. *fair*: how requests share the engine where its `scheduler_type` is "aqua_fair"; its
    block size is the engine's. *parks* False: nothing is copied, and whoever gives way is computed
    again, as the engine's own schedulers do it: cheaper than a copy where requests are short.

    Raises:
        InvalidRequest: the manager has been started, its transformers or its settings are not
            supported; the message says which and what to set.
    """
    engine.check_version()
    if manager.is_running():
        raise InvalidRequest("the manager is running: attach to it before manager.start()")
    _check_settings(manager)
    processor = engine.processor_of(manager)
    pools = (client or aqua_client) if parks else None
    paging = Paging(processor, pools, write_through=write_through, ahead_bytes=ahead_bytes)
    processor.offloading_manager = paging
    _tell_of_ends(paging)
    if isinstance(paging.scheduler, FairBatches):
        paging.scheduler.use(paging, processor._handle_request_error, fair)  # noqa: SLF001 - as the engine fails its own
    elif fair is not None:
        raise InvalidRequest('fair=... is for ContinuousBatchingConfig(scheduler_type="aqua_fair")')
    return paging


_ASYNC = "a batch would be made while requests of the one before are computed, and may be parked"
_PARALLEL = "every rank would have to park the same requests"


def _check_settings(manager: ContinuousBatchingManager) -> None:
    config = manager.continuous_batching_config
    graphs = config.use_cuda_graph
    is_graphed = any(graphs) if isinstance(graphs, tuple) else graphs
    is_two_way = config.cpu_offload_space != 0
    refused = (
        (config.use_async_batching, "use_async_batching", "False", _ASYNC),
        (is_graphed, "use_cuda_graph", "False", "not tried on a GPU yet"),
        (is_two_way, "cpu_offload_space", "0", "where there are no leases, host memory is used"),
        (manager.distributed_helper.tp_size > 1, "tensor parallelism", "one GPU", _PARALLEL),
    )
    for is_on, name, instead, why in refused:
        if is_on:
            raise InvalidRequest(
                f"{name} is not supported with paging to leases, use {instead}: {why}"
            )


def _tell_of_ends(paging: Paging) -> None:
    """The engine tells its scheduler of a request's end, and its offloading only of cancellations."""
    scheduler = paging.scheduler
    finish, schedule = scheduler.finish_request, scheduler.schedule_batch

    def finish_request(request_id: str) -> None:
        finish(request_id)
        paging.forget(request_id)

    def schedule_batch(token_budget: int, cache_budget: int) -> engine.Scheduled:
        paging.requeue_lost()
        while True:
            batch, is_fast, tokens, kv_tokens = schedule(token_budget, cache_budget)
            lost = paging.bring_back(batch or [])
            tokens -= sum(one.query_length for one in lost)
            kv_tokens -= sum(one.state.position_offset for one in lost)
            if batch or not lost:
                return batch, is_fast, tokens, max(0, kv_tokens)

    # There is no other place where the engine would say it.
    scheduler.finish_request = finish_request  # type: ignore[method-assign]
    scheduler.schedule_batch = schedule_batch  # type: ignore[method-assign]
