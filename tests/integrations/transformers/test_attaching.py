"""What attaching refuses, and says."""

from __future__ import annotations

import pytest
import transformers

import aqua_client
from aqua_client.integrations.transformers import attach
from aqua_client.scheduling import FairSettings
from tests.integrations.transformers.engines import batching, manager_of, started


def test_async_batching_is_refused(client: aqua_client.Client) -> None:
    """By name, with what to set instead."""
    manager = manager_of(batching(use_async_batching=True))
    with pytest.raises(aqua_client.InvalidRequest, match=r"use_async_batching .*, use False"):
        attach(manager, client=client)


def test_cuda_graphs_are_refused(client: aqua_client.Client) -> None:
    """By name; the engine itself turns them off where there is no GPU, so they are set after it."""
    manager = manager_of(batching())
    manager.continuous_batching_config.use_cuda_graph = (False, True)
    with pytest.raises(aqua_client.InvalidRequest, match=r"use_cuda_graph .*, use False"):
        attach(manager, client=client)


def test_tensor_parallelism_is_refused(client: aqua_client.Client) -> None:
    """Every rank would have to park the same requests at the same step, and nobody tells them."""
    manager = manager_of(batching())
    manager.distributed_helper.tp_size = 2
    with pytest.raises(aqua_client.InvalidRequest, match=r"tensor parallelism .*, use one GPU"):
        attach(manager, client=client)


def test_a_second_place_to_offload_to_is_refused(client: aqua_client.Client) -> None:
    """The engine's pinned memory and leases would be told of the same requests."""
    manager = manager_of(batching(cpu_offload_space=0.5))
    with pytest.raises(aqua_client.InvalidRequest, match=r"cpu_offload_space .*, use 0"):
        attach(manager, client=client)


def test_fair_settings_for_another_scheduler_are_refused(client: aqua_client.Client) -> None:
    """They would change nothing."""
    with pytest.raises(aqua_client.InvalidRequest, match=r"scheduler_type=.aqua_fair"):
        attach(manager_of(batching()), client=client, fair=FairSettings())


def test_fair_slices_over_a_sliding_window_are_refused(client: aqua_client.Client) -> None:
    """By name, with the scheduler that does."""
    manager = manager_of(batching(scheduler_type="aqua_fair"), sliding_window=24)
    with pytest.raises(aqua_client.InvalidRequest, match=r"sliding window, use 'fifo'"):
        attach(manager, client=client)


def test_a_running_manager_is_refused(client: aqua_client.Client) -> None:
    """What it has in its cache by then nobody would know of."""
    with (
        started(manager_of(batching())) as manager,
        pytest.raises(aqua_client.InvalidRequest, match=r"before manager.start"),
    ):
        attach(manager, client=client)


@pytest.mark.parametrize(
    ("version", "is_tried"),
    [("5.16.2", False), ("5.17.0", True), ("5.23.1", True), ("5.24.0.dev0", False), ("6.0", False)],
)
def test_only_tried_versions_are_taken(
    client: aqua_client.Client, monkeypatch: pytest.MonkeyPatch, version: str, *, is_tried: bool
) -> None:
    """Others are refused with the range; what is read inside the engine is promised by nobody."""
    monkeypatch.setattr(transformers, "__version__", version)
    manager = manager_of(batching())
    if is_tried:
        attach(manager, client=client).close()
    else:
        with pytest.raises(aqua_client.InvalidRequest, match=r"5.17 to 5.23"):
            attach(manager, client=client)
