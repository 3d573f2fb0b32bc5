"""Each setting reaches the part that it is for."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from aqua_daemon.adapters.call_limits import CallLimits
from aqua_daemon.assembly import broker_settings, call_limits, presence_limits
from aqua_daemon.config import DaemonConfig, read_config
from aqua_daemon.core.model import BrokerSettings, GpuUuid, LendingPolicy
from tests.nodes import MIB

GPUS = (GpuUuid("SHM-0"), GpuUuid("SHM-1"))
# No two alike, and none as it is by default.
WORDS = {
    "shm_gpus": "2",
    "host_pool_bytes": "101MiB",
    "tenant_host_bytes": "102MiB",
    "tenant_quota_bytes": "103MiB",
    "tenant_quota_leases": "104",
    "tenant_quota_sessions": "105",
    "connections_per_uid": "106",
    "sessions_per_process": "107",
    "calls_per_process": "108",
    "calls_per_uid": "109",
    "calls_per_second_per_process": "110",
    "calls_per_second_per_uid": "111",
    "admin_group": "root",
    "lend_to_own_gpu": "true",
    "lending": "offered",
    "lending_of": "SHM-1=never",
    "settle_seconds": "112",
    "newcomer_seconds": "113",
    "ramp_seconds": "114",
    "rebalance_seconds": "115",
    "rest_seconds": "116",
    "lend_over_pcie": "true",
    "host_bytes_per_second": "117MiB",
    "term_seconds": "118",
}


def config(tmp_path: Path) -> DaemonConfig:
    return read_config({**WORDS, "state_dir": str(tmp_path)}, environment={})


def test_the_broker_is_told_all_that_it_goes_by(tmp_path: Path) -> None:
    """No field of its settings is left at a default where there is a setting for it."""
    told = broker_settings(config(tmp_path), GPUS)
    assert told == BrokerSettings(
        gpus=GPUS,
        smallest_slab_bytes=4 * MIB,
        largest_slab_bytes=32 * MIB,
        host_pool_bytes=101 * MIB,
        tenant_host_bytes=102 * MIB,
        tenant_quota_bytes=103 * MIB,
        tenant_quota_leases=104,
        tenant_quota_sessions=105,
        admin_group="root",
        lend_to_own_gpu=True,
        lending=LendingPolicy.OFFERED,
        lending_of={GPUS[1]: LendingPolicy.NEVER},
        settle_seconds=112.0,
        newcomer_seconds=113.0,
        ramp_seconds=114.0,
        rebalance_seconds=115.0,
        rest_seconds=116.0,
        lend_over_pcie=True,
        host_bytes_per_second=117 * MIB,
        term_seconds=118.0,
        restart_grace_seconds=177.0,  # a term and a half
    )
    usual = {one.name: one.default for one in fields(BrokerSettings)}
    assert [name for name, value in usual.items() if getattr(told, name) == value] == []


def test_the_doors_are_told_what_callers_may_ask(tmp_path: Path) -> None:
    """Of a process and of a user, under way and in a second, of presence and of the API."""
    limits = config(tmp_path).limits
    presence = presence_limits(limits)
    assert (presence.connections_per_uid, presence.sessions_per_process) == (106, 107)
    assert call_limits(limits) == CallLimits(
        under_way_per_process=108,
        under_way_per_uid=109,
        per_second_per_process=110,
        per_second_per_uid=111,
    )
